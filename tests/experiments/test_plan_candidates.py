"""The candidates of a plan: given ones, or combinations of the values of a space."""

from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.errors import ConfigError
from bytelm.experiments.plan.candidates import MOST_CANDIDATES, candidates_of, space_around
from bytelm.experiments.task import Plan, read_space

PROJECT = Path(__file__).resolve().parents[2]


def test_a_space_with_ranges_is_drawn_from_evenly():
    space = {"a": {"low": 1.0, "high": 100.0, "log": True}, "b": {"low": 0, "high": 40, "step": 2}, "c": ["x", "y"]}
    candidates = candidates_of(space, {}, 0)
    assert len(candidates) == MOST_CANDIDATES
    values = [dict(candidate) for candidate in candidates]
    assert {each["b"] for each in values} == {str(number) for number in range(0, 41, 2)}
    assert 0.4 < sum(float(each["a"]) < 10 for each in values) / len(values) < 0.6


def test_a_list_of_candidates_is_taken_as_it_is():
    points = candidates_of([{"model.gpt.d_model": 64, "model.optimizer.lr": 1e-3}, {"model.gpt.d_model": 96}], {}, 0)
    assert points == [(("model.gpt.d_model", "64"), ("model.optimizer.lr", "0.001")), (("model.gpt.d_model", "96"),)]


def test_a_space_may_be_a_file(tmp_path):
    space = read_space(str(PROJECT / "configs/spaces/challenge.yaml"))
    assert space["model.gpt.position"] == ["Learned", "Rotary"]
    assert Plan(["c.yaml"], space=space, sampler="tpe").space is space
    assert read_space(space) is space
    with pytest.raises(ConfigError, match=r"nowhere.yaml' cannot be used; No such file.*accepted: a YAML file"):
        read_space(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="it is not valid YAML"):
        read_space(str(tmp_path / "bad.yaml"))


def test_the_default_space_is_around_the_config_and_d_ff_stays_in_proportion():
    known = {"d_model": 80, "n_heads": 4, "d_ff": 256, "n_layers": 2}
    known = {**{f"model.gpt.{key}": value for key, value in known.items()}, "model.optimizer.lr": 4e-3}
    space = space_around(known)
    assert space == {
        "model.gpt.d_model": [40, 56, 80, 112, 160],
        "model.gpt.n_layers": [1, 2, 3, 4],
        "model.optimizer.lr": {"low": 1e-3, "high": 1.6e-2, "log": True},
    }
    for point in map(dict, candidates_of(space, known, 0)):
        assert int(point["model.gpt.d_ff"]) == round(256 * int(point["model.gpt.d_model"]) / 80)
    assert space_around({"model.gpt.d_model": 16, "model.gpt.n_heads": 2}) == {"model.gpt.d_model": [8, 12, 16, 24, 32]}
    given = candidates_of({"model.gpt.d_model": [40, 80], "model.gpt.d_ff": [7]}, known, 0)
    assert given == [
        (("model.gpt.d_model", "40"), ("model.gpt.d_ff", "7")),
        (("model.gpt.d_model", "80"), ("model.gpt.d_ff", "7")),
    ]
