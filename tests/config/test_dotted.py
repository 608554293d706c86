"""Keys with dots beside the key that they belong to."""

import pytest

from bytelm.cli import build
from bytelm.config.dotted import joined

MUON = {"class_path": "Muon", "init_args": {"lr": 1}}


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": "Muon", "optimizer.lr": 1},
        {"optimizer.lr": 1, "optimizer": "Muon"},
        {"optimizer": {"class_path": "Muon"}, "optimizer.init_args.lr": 1},
        {"optimizer": {"class_path": "Muon", "init_args": {"lr": 2}}, "optimizer.lr": 1},
        {"optimizer": {"lr": 1}, "optimizer.class_path": "Muon"},
    ],
    ids=str,
)
def test_an_option_joins_its_class(config):
    assert joined(config) == {"optimizer": MUON}


@pytest.mark.parametrize(
    "config",
    [
        {"model.optimizer": "Muon", "model.optimizer.lr": 1, "model": {"gpt": {}}},
        {"model": {"gpt": {}, "optimizer": {"lr": 1}}, "model.optimizer": "Muon"},
        {"model": {"gpt": {}, "optimizer": {"init_args": {"lr": 1}}}, "model.optimizer": "Muon"},
        {"model": {"gpt": {}, "optimizer": "Muon"}, "model.optimizer": {"init_args": {"lr": 1}}},
        {"model": {"gpt": {}, "optimizer": "Muon", "optimizer.lr": 1}},
    ],
    ids=str,
)
def test_keys_at_several_levels_are_one_value(config):
    assert joined(config) == {"model": {"gpt": {}, "optimizer": MUON}}


@pytest.mark.parametrize(
    "config", [{"a.b": 1, "a.c": 2}, {"a": 1, "a.b": 2}, {"a": [{"b.c": 1}]}, {"ab": "X", "a.b": 1}, {1: 2}], ids=str
)
def test_other_keys_are_unchanged(config):
    assert joined(config) == config


def test_the_path_of_a_file_is_no_class(tmp_path):
    config = {"model": str(tmp_path / "model.yaml"), "model.gpt.d_model": 3}
    (tmp_path / "model.yaml").touch()
    assert joined(config) == config


def test_a_config_file_may_give_a_class_and_its_options_by_dots(folder):
    given = "{model.optimizer.lr: 0.07, model.optimizer: Adam, lr_schedule: Cosine, lr_schedule.warmup: 7%}"
    momentum = "{schedules.momentum.hidden: {class_path: Ramp, init_args: {start: 0.8, end: 0.9}}}"
    configs = ["--config", "tiny.yaml", "--config", given, "--config", momentum]
    config = build(configs, run=False).plain_config
    assert config["schedules"]["momentum.hidden"]["init_args"]["end"] == 0.9
    optimizer, schedule = config["model"]["optimizer"], config["lr_schedule"]
    assert (optimizer["class_path"], optimizer["init_args"]["lr"]) == ("torch.optim.Adam", 0.07)
    assert (schedule["class_path"], schedule["init_args"]["warmup"]) == ("bytelm.schedules.Cosine", "7%")
