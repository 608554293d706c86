import pytest
from run_folders import config, make_run

pytest.importorskip("scipy")

from pathlib import Path

from scipy import stats

from bytelm.experiments.comparison import Noise, Spread, changes, experiments_of, settings
from bytelm.runs.ledger import read_runs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def experiments():
    return experiments_of(read_runs(Path("runs")))


def test_a_change_is_named_by_what_people_call_the_key():
    before, after = settings(config()), settings(config(d_model=32, lr=1e-3))
    assert changes(before, after) == ["d_model 16 → 32", "lr 0.003 → 0.001"]
    assert changes(before, before) == []


def test_a_part_that_was_swapped_is_one_change():
    rotary = config(position={"class_path": "bytelm.parts.position.Rotary", "init_args": {"base": 1e4}})
    learned = config(position={"class_path": "bytelm.parts.position.Learned", "init_args": {"std": 0.02}})
    assert changes(settings(rotary), settings(learned)) == ["position Rotary → Learned"]


def test_an_option_that_both_of_two_swapped_parts_have_is_a_change_of_its_own():
    cosine = {
        **config(),
        "lr_schedule": {"class_path": "bytelm.callbacks.Cosine", "init_args": {"warmup": "5%", "end": 0.1}},
    }
    assert changes(settings(config()), settings(cosine)) == [
        "lr_schedule Constant → Cosine",
        "lr_schedule.warmup 0 steps → 5%",
    ]


def test_values_that_were_unset_are_called_none():
    clipped = config()
    unclipped = {**clipped, "trainer": {"gradient_clip_val": None, "log_every_n_steps": 1}}
    assert changes(settings(unclipped), settings(clipped)) == ["gradient_clip_val none → 1"]


def test_seed_and_name_and_logging_are_no_settings():
    other = {**config(seed=1), "experiment": "x", "trainer": {"gradient_clip_val": 1.0, "log_every_n_steps": 1}}
    assert settings(other) == settings(config())


def test_runs_with_other_code_are_other_experiments():
    for at, content in enumerate(("1f", "1f", "9a")):
        make_run("s/idea", at=at, version=at, code={"my_parts.py": content})
    first, second = experiments()
    assert (len(first.runs), second.changes) == (2, ["my_parts.py 1f \u2192 9a"])


def test_runs_that_differ_by_their_seed_alone_are_one_experiment():
    for seed, score in ((42, 2.0), (1, 2.2), (2, 2.1)):
        make_run(f"s/32-a,seed={seed}", score, at=seed, settings=config(seed=seed))
    make_run("s/33-b", 1.9, at=50, settings=config(d_model=32))
    one, other = experiments()
    assert (one.number, one.name, other.number, other.name) == (32, "32-a", 33, "33-b")
    assert sorted(one.scores) == [2.0, 2.1, 2.2]
    assert one.score == pytest.approx(2.1)
    assert one.spread == pytest.approx(0.1)
    assert other.spread is None


def test_a_run_was_made_from_the_one_that_it_differs_from_least():
    make_run("s/1-base", 3.0, at=1)
    make_run("s/2-wide", 2.8, at=2, settings=config(d_model=32))
    make_run("s/3-wide-slow", 2.9, at=3, settings=config(d_model=32, lr=1e-3))
    base, wide, slow = experiments()
    assert (base.origin, base.changes) == (None, [])
    assert (wide.origin, wide.changes) == (base, ["d_model 16 → 32"])
    assert (slow.origin, slow.changes) == (wide, ["lr 0.003 → 0.001"])


def test_of_several_that_differ_as_little_it_was_made_from_the_best():
    make_run("s/1-a", 3.0, at=1)
    make_run("s/2-b", 2.0, at=2, settings=config(lr=1e-3))
    make_run("s/3-c", status="error", at=3, settings=config(lr=2e-3))
    make_run("s/4-d", 2.5, at=4, settings=config(lr=4e-3))
    *_, last = experiments()
    assert last.origin.name == "2-b"


def test_a_run_that_failed_is_an_experiment_without_a_score():
    make_run("s/1-a", status="diverged")
    (failed,) = experiments()
    assert (failed.score, failed.spread, failed.kept, failed.scores) == (None, None, False, [])


def test_runs_without_val_bpb_are_compared_by_their_val_loss():
    for seed, loss in ((1, 5.0), (2, 5.2)):
        make_run(f"s/1-a,seed={seed}", None, at=seed, settings=config(seed=seed), val_loss=loss)
    make_run("s/2-b", None, at=3, settings=config(d_model=32), val_loss=4.0)
    one, other = experiments()
    assert (one.scores, other.scores) == ([5.0, 5.2], [4.0])
    assert (one.score, one.spread) == (pytest.approx(5.1), pytest.approx(0.02**0.5))
    assert (one.kept, other.kept) == (True, True)
    assert Spread.of([one, other]).variance == pytest.approx(0.02)


def test_a_figure_is_the_median_over_the_runs():
    for seed, steps in ((1, 100), (2, 300), (3, 110)):
        make_run(f"s/a,seed={seed}", at=seed, settings=config(seed=seed), total_steps=steps)
    (experiment,) = experiments()
    assert experiment.figure("total_steps") == 110
    assert experiment.figure("mfu") is None


def several(*groups):
    """Returns experiments with these scores."""
    for number, scores in enumerate(groups):
        for seed, score in enumerate(scores):
            make_run(f"s/{number}-x,seed={seed}", score, at=seed, settings=config(seed=seed, d_model=16 + number))
    return experiments()


def test_the_spread_over_seeds_is_pooled_over_experiments():
    spread = Spread.of(several((1.0, 3.0), (5.0, 6.0, 7.0), (9.0,)))
    assert spread.freedom == 3
    assert spread.variance == pytest.approx((2 + 2) / 3)  # sums of squares: 2 and 2


def test_without_several_seeds_noise_is_not_known():
    experiments = several((1.0,), (2.0,))
    assert Spread.of(experiments) is None
    assert Noise({"all": experiments}).spreads == {}


def test_each_phase_has_its_own_noise_and_one_without_seeds_that_of_all():
    quiet, loud, alone = several((1.0, 1.0, 1.3), (5.0, 8.0), (9.0,))
    noise = Noise({"quiet": [quiet], "loud": [loud], "alone": [alone]})
    assert noise.spreads["quiet"] == Spread(pytest.approx(0.03), 2)
    assert noise.spreads["loud"] == Spread(pytest.approx(4.5), 1)
    assert noise.spreads["alone"] == Spread(pytest.approx((0.06 + 4.5) / 3), 3)


def test_noise_can_be_measured_on_other_runs():
    one, other, measured = several((1.0,), (2.0,), (5.0, 7.0))
    noise = Noise({"all": [one, other]}, {"all": [measured]})
    assert noise.spreads == {"all": Spread(pytest.approx(2.0), 1)}
    assert noise.significant([(one, other)]) == [False]


def test_the_margin_is_students():
    one, other = several((1.0, 2.0, 3.0), (4.0,))
    noise = Noise({"all": [one, other]})
    # t of 2 degrees of freedom at 97.5 % is 4.303; the error of a mean of three against one is sqrt(1/3 + 1).
    assert noise.margin(one, other) == pytest.approx(4.303 * (4 / 3) ** 0.5, rel=1e-3)


def test_across_phases_the_margin_is_welchs():
    one, other = several((1.0, 2.0, 3.0), (1.0, 5.0, 6.0, 8.0))
    noise = Noise({"one": [one], "other": [other]})
    welch = stats.ttest_ind(one.scores, other.scores, equal_var=False)
    error, freedom = noise.difference(one, other)
    assert (one.score - other.score) / error == pytest.approx(welch.statistic)
    assert freedom == pytest.approx(welch.df)


def test_only_differences_beyond_the_noise_are_significant():
    base, near, far = several((2.00, 2.02, 2.01), (2.01, 2.03, 2.00), (2.50, 2.51, 2.52))
    noise = Noise({"all": [base, near, far]})
    assert noise.significant([(base, near), (base, far)]) == [False, True]
    assert noise.significant([]) == []


def test_among_many_comparisons_a_difference_must_be_larger():
    scores = [(2.0, 2.02, 2.04)] * 20 + [(2.04, 2.06, 2.08)]
    *equal, other = several(*scores)
    noise = Noise({"all": [*equal, other]})
    assert noise.significant([(equal[0], other)]) == [True]
    assert not any(noise.significant([(equal[0], e) for e in [*equal[1:], other]]))
