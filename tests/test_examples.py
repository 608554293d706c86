"""The examples of docs/examples: each trains, resumes exactly, generates text, and runs under two ranks."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from test_ranks import Run, write_inputs

from bytelm.callbacks import TimeBudget
from bytelm.inference.generate import write
from bytelm.inference.load import load

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples"
LAST = "checkpoints/last.ckpt"
OPTIONS = {
    "mixture_of_experts": ("--model.gpt.feedforward", "mixture_of_experts.MixtureOfExperts"),
    "alternating_window": (
        *("--model.gpt.attention", "alternating_window.AlternatingWindow", "--model.gpt.n_layers", "2"),
        *("--model.gpt.attention.window", "8"),
    ),
    "residual_scalars": ("--model.gpt.block", "residual_scalars.ResidualScalars"),
    "linear_attention": ("--model.gpt.attention", "linear_attention.Retention", "--model.gpt.position", "NoPosition"),
    "multi_token_prediction": ("--model.loss", "multi_token_prediction.MultiTokenPrediction"),
}


@pytest.fixture
def examples(folder):
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def weights(experiment):
    return torch.load(f"runs/{experiment}/version_0/{LAST}", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_example_is_short_trains_resumes_exactly_and_writes(examples, run, name, capsys):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60
    options = (*OPTIONS[name], "--model.optimizer", "MuonAdamW", "--trainer.gradient_clip_val", "1.0")
    run("--experiment", "whole", "--time_budget.limit", "8 steps", *options)
    run("--experiment", "cut", "--time_budget.limit", "4 steps", *options)
    run("--experiment", "cut", "--time_budget.limit", "8 steps", "--ckpt_path", "last", *options)
    whole, cut = weights("whole"), weights("cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    record = json.loads(Path("runs/whole/version_0/record.json").read_text())
    assert record["status"] == "completed"
    model = load(f"runs/whole/version_0/{LAST}", ["runs/whole/version_0/config.yaml"])
    text = "".join(write(model, "to be", max_new_tokens=40, seed=1))
    assert text.startswith("to be")
    assert text == "".join(write(model, "to be", max_new_tokens=40, seed=1, cached=False))
    assert (model.gpt.new_cache() is None) == (name == "linear_attention")


# A run of two ranks takes seconds to start: examples of different kinds share one.
TOGETHER = [
    ["mixture_of_experts", "residual_scalars", "multi_token_prediction"],
    ["alternating_window"],
    ["linear_attention"],
]


@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_examples_run_under_two_ranks(tmp_path, names):
    write_inputs(tmp_path)
    for name in names:
        shutil.copy(FOLDER / f"{name}.py", tmp_path)
    options = [option for name in names for option in OPTIONS[name]]
    run = Run(tmp_path, *options, "--time_budget.limit", "3 steps")
    status, _ = run.end()
    assert status == 0, run.err
    steps = [[event["step"] for event in run.events(rank, "step")] for rank in (0, 1)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 3


def test_the_example_of_a_budget_for_anyones_module_is_20_lines_and_learns(folder, monkeypatch, capsys):
    budgets = []

    def shorter(limit):
        assert limit == "10s"
        budgets.append(TimeBudget("50 steps"))
        return budgets[0]

    monkeypatch.setattr("bytelm.callbacks.TimeBudget", shorter)
    path = FOLDER / "time_budget_mnist.py"
    assert len([line for line in path.read_text().splitlines() if line]) <= 20
    runpy.run_path(str(path))
    assert budgets[0].steps == 50
    assert float(capsys.readouterr().out.rpartition("accuracy: ")[2]) > 0.9
