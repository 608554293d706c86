"""The law of the loss in parameters and tokens: fitted to runs that follow it, and in a plan's files."""

import json

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.experiments.plan import loss_law
from bytelm.experiments.plan.budget_law import BudgetLaw
from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.loss_law import LossLaw, effective_tokens, interval
from bytelm.experiments.plan.output import write
from bytelm.experiments.plan.result import Result
from bytelm.experiments.plan.runs import Measured, Standing
from bytelm.runs.score import VAL_BPB
from bytelm.units import Duration

N = np.tile(np.geomspace(5e4, 2e6, 8), 3)  # parameters
D = 4e4 / (N / 2e5) * np.repeat([16.0, 64.0, 256.0], 8)  # tokens
TRUTH = 0.9 + 9.0 / N**0.3 + 60.0 / D**0.35


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(loss_law, "DRAWS", 3)


def noisy(seed, noise=0.01):
    return TRUTH * np.exp(np.random.default_rng(seed).normal(0, noise, len(N)))


def test_the_law_of_exact_runs_is_recovered_and_predicts_beyond_them():
    law = LossLaw.fit(N, D, TRUTH)
    wanted = {"E": 0.9, "A": 9.0, "alpha": 0.3, "B": 60.0, "beta": 0.35}
    values = law.values()
    for name in ("E", "alpha", "beta"):
        assert values[name][0] == pytest.approx(wanted[name], rel=0.1), name
    for name in ("A", "B"):
        assert np.log(values[name][0]) == pytest.approx(np.log(wanted[name]), abs=0.4), name
    assert law.apart < 1e-3
    assert law.open_values() == []
    sizes, tokens = np.array([1e5, 4e6]), np.array([1e8, 1e8])
    truth = 0.9 + 9.0 / sizes**0.3 + 60.0 / tokens**0.35
    assert law.losses(sizes, tokens)[0] == pytest.approx(truth, rel=0.02)


def test_one_bad_run_hardly_moves_the_law():
    bad = TRUTH.copy()
    bad[12] *= 1.5
    moved = LossLaw.fit(N, D, bad).losses(N, D)[0] / TRUTH - 1
    assert np.abs(moved).max() < 0.01  # with least squares, by 3.7 %


def test_the_intervals_contain_the_truth(monkeypatch):
    monkeypatch.setattr(loss_law, "DRAWS", 40)
    inside = []
    for seed in range(2):
        losses = LossLaw.fit(N, D, noisy(seed)).losses(N, 4 * D)
        truth = 0.9 + 9.0 / N**0.3 + 60.0 / (4 * D) ** 0.35
        ends = [interval(fits) for fits in losses.T]
        inside += [low < loss < high for (low, high), loss in zip(ends, truth, strict=True)]
        assert all((high - low) / low < 0.25 for low, high in ends)
    assert np.mean(inside) > 0.75


def test_the_same_runs_give_the_same_intervals():
    first, again = (LossLaw.fit(N, D, noisy(0)) for _ in range(2))
    assert (first.fits == again.fits).all()


def test_runs_of_nearly_one_size_leave_the_values_of_the_size_open():
    assert {"E", "A", "alpha"} <= set(LossLaw.fit(1e5 * N ** (1e-3), D, 60.0 / D**0.35).open_values())


def test_repeated_tokens_count_less_and_tokens_of_the_first_reading_count_in_full():
    assert effective_tokens([10.0, 100.0], 100.0) == pytest.approx([10.0, 100.0])
    repeated = effective_tokens([200.0, 400.0, 1e9], 100.0)
    assert repeated[0] == pytest.approx(100 + 1538.7743 * (1 - np.exp(-1 / 15.387743)))
    assert np.diff(repeated)[0] < 200
    assert repeated[2] == pytest.approx(1638.7743)
    assert effective_tokens(500.0, None) == 500.0
    once, many = (BudgetLaw.fit(N, D, np.repeat([0.1, 0.4, 1.6], 8), TRUTH, [text] * 24) for text in (1e9, 1e5))
    assert once.losses(4.0)[0, 0] / once.losses(1.0)[0, 0] < many.losses(4.0)[0, 0] / many.losses(1.0)[0, 0]


def test_tokens_of_a_budget_follow_from_the_time_per_token_of_the_runs():
    costs = 1e-9 + 1e-14 * N
    law = BudgetLaw.fit(N, D, D * costs, TRUTH, [None] * len(N))
    assert law.costs == pytest.approx([1e-9, 1e-14])
    assert law.losses(0.5) == pytest.approx(law.law.losses(law.sizes, 0.5 / (1e-9 + 1e-14 * law.sizes)))
    losses = law.losses(1.0)[0]
    assert 0 < losses.argmin() < len(losses) - 1  # neither the smallest nor the largest


@pytest.mark.parametrize("runs", [24, 5])
def test_a_plan_has_the_law_or_the_reason_why_there_is_none(tmp_path, runs):
    candidates = [(("model.gpt.d_model", str(16 * (place + 1))),) for place in range(8)]
    shares = np.repeat([1 / 16, 1 / 4, 1.0], 8).tolist()
    rows = [
        Measured(candidates[k % 8], shares[k], N[k], D[k], 1000, loss, unique=2e6) for k, loss in enumerate(noisy(0))
    ]
    standing = Standing([], [], rows[-runs:], 0.0, VAL_BPB)
    result = Result(Coordinates(candidates, ["model.gpt.d_model"]), Duration(160.0, "seconds"), standing)
    write(result, tmp_path, "c.yaml", "fit")
    page, law = (tmp_path / "plan.md").read_text(), json.loads((tmp_path / "plan.json").read_text())["law"]
    if runs == 5:
        assert law["reason"].startswith("5 completed runs of 5 sizes are too few for its five values")
        assert f"No law of the loss in parameters and tokens: {law['reason']}." in page
        return
    assert list(law["values"]) == ["E", "A", "alpha", "B", "beta"]
    assert [one["limit"] for one in law["budgets"]] == ["10s", "40s", "160s", "320s", "640s"]
    best = [one["best_parameters"][0] for one in law["budgets"]]
    assert best == sorted(best)
    assert best[0] < best[-1]  # a longer budget wants a larger network
    assert f"For 160s, the best size by the law is {float(f'{best[2]:.3g}'):,.0f} parameters (" in page
    assert "| 320s (not run) |" in page
    assert "| alpha |" in page
    assert (f"read its text {max(D) / 2e6:.2g} times") in page
    picture = (tmp_path / "plan.svg").read_text()
    assert "parameters" in picture
    assert "mathdefault" not in picture  # a power of ten as its formula
