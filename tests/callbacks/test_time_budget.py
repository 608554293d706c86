"""The budget is kept, on a clock that tests advance: every figure is exact."""

import json
import os
import sys
from pathlib import Path

import programs
import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from thinned import thinned

from bytelm.callbacks import Cosine, LastCheckpoint, TimeBudget, time_budget
from bytelm.errors import ConfigError
from bytelm.units import Duration

FLOPS = 128 * (6 * 6352 + 12 * 16 * 32)  # of a step of tiny.yaml: 128 tokens, 6352 parameters, rows of 32
PROJECT = Path(__file__).resolve().parents[2]


class Slow(Callback):
    """Advances the clock: by `seconds[step]` in each step's forward pass, by 100 in validation and in checkpoints."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds
        self.fractions, self.rates = [], []

    def on_fit_start(self, trainer, pl_module):
        def turn(gpt, *args):
            if gpt.training:  # including the warm-up pass, in which callbacks are not called
                self.clock.now += self.seconds[min(trainer.global_step, len(self.seconds) - 1)]

        pl_module.gpt.register_forward_hook(turn)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.fractions.append(TimeBudget.of(trainer).progress.fraction)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.clock.now += 100


@pytest.fixture
def timed(run, clock):
    """Runs with steps of these durations; returns the budget and the callback."""

    def timed(seconds, *options):
        slow = Slow(clock, seconds)
        with added_callback(slow):
            return TimeBudget.of(run(*options).trainer), slow

    return timed


@pytest.mark.parametrize(
    ("seconds", "limit", "steps", "used"),
    [([1.0], "10s", 10, 10.0), ([3.0], "10s", 3, 9.0), ([0.5], "2.2s", 4, 2.0), ([2, 1], "5500ms", 4, 5.0)],
)
def test_a_step_that_does_not_fit_is_not_started(timed, seconds, limit, steps, used):
    budget, _ = timed(seconds, "--time_budget.limit", limit)
    assert (budget.steps, budget.training_seconds) == (steps, pytest.approx(used))


def test_overshoot_stops_after_the_first_step_that_reaches_the_limit(timed):
    budget, _ = timed([3.0], "--time_budget.limit", "10s", "--time_budget.overshoot", "allow")
    assert (budget.steps, budget.training_seconds) == (4, pytest.approx(12.0))


def test_a_last_step_that_turns_out_too_slow_is_dropped(timed):
    budget, _ = timed([1, 1, 1, 1, 7], "--time_budget.limit", "6.5s", "--experiment", "slow")
    assert (budget.steps, budget.training_seconds) == (4, pytest.approx(4.0))
    timed([1.0], "--time_budget.limit", "4 steps", "--experiment", "even")
    slow, even = (torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("slow", "even"))
    for name, value in even["state_dict"].items():
        assert torch.equal(slow["state_dict"][name], value), name
    torch.testing.assert_close(slow["optimizer_states"][0]["state"], even["optimizer_states"][0]["state"])


@pytest.mark.parametrize("overshoot", ["forbid", "allow"])
def test_a_first_step_that_passes_the_limit_is_noted(timed, capsys, overshoot):
    options = ("--time_budget.warm_up", "false", "--time_budget.overshoot", overshoot)
    budget, _ = timed([3.0], "--time_budget.limit", "2s", *options)
    assert budget.steps == 1
    line = "bytelm: note: the first step has passed time_budget.limit: 3s of 2s are used; training ends"
    assert (line in capsys.readouterr().err) == (overshoot == "forbid")


def test_validation_and_checkpoints_do_not_count(timed, clock, monkeypatch):
    def on_save_checkpoint(self, checkpoint):
        clock.now += 100

    monkeypatch.setattr("bytelm.language_model.LanguageModel.on_save_checkpoint", on_save_checkpoint)
    budget, _ = timed([1.0], "--time_budget.limit", "8s", "--trainer.val_check_interval", "3")
    assert (budget.steps, budget.training_seconds) == (8, pytest.approx(8.0))
    assert clock.now > 1400  # they did take that time


def test_scope_run_counts_all_and_keeps_a_reserve(timed, clock):
    clock.now += 5  # start-up
    budget, _ = timed([1.0], "--time_budget={limit: 20s, scope: run, reserve: 4s}")
    # 5 s of start-up, 2 s in the warm-up pass, 9 steps; 4 s are reserved.
    assert (budget.steps, budget.training_seconds) == (9, pytest.approx(9.0))


@pytest.mark.parametrize(
    ("options", "steps"),
    thinned(
        [
            (["--time_budget.limit", "7 steps"], 7),
            (["--time_budget.limit", "1000 tok"], 7),  # 128 a step
            (["--time_budget.limit", "1000 tok", "--time_budget.overshoot", "allow"], 8),
            (["--time_budget.limit", "[100s, 7 steps]"], 7),
            (["--time_budget.limit", "[3s, 7 steps]"], 3),
            (["--time_budget.limit", f"{7 * FLOPS} FLOP"], 7),
            (["--time_budget.limit", f"{7 * FLOPS - 1} FLOP"], 6),
            (["--time_budget.limit", f"[100s, {2.5 * FLOPS / 1e6} MFLOP]"], 2),
            (["--time_budget.limit", f"{7 * FLOPS} FLOP", "--trainer.accumulate_grad_batches", "2"], 3),
            (["--time_budget.limit", "1000 tok", "--trainer.accumulate_grad_batches", "2"], 3),
            (["--time_budget.limit", "6s", "--trainer.accumulate_grad_batches", "2"], 3),
        ],
        5,
        several=True,
    ),
)
def test_the_first_limit_that_is_reached_ends_the_run(timed, options, steps):
    budget, _ = timed([1.0], *options)
    assert budget.steps == steps


def test_flops_follow_the_length_of_rows_and_a_step_beyond_the_limit_is_not_started(timed):
    lengths = "{data.seq_len: {class_path: Piecewise, init_args: {points: {0%: 16, 2 steps: 32}}}}"
    flops = 2 * 64 * (6 * 6352 + 12 * 16 * 16) + 3 * FLOPS
    for limit, steps in ((flops, 5), (flops - 1, 4)):
        budget, _ = timed(
            [1.0], "--schedules", lengths, "--time_budget.limit", f"{limit} FLOP", "--experiment", str(steps)
        )
        assert (budget.steps, budget.flops) == (steps, flops - (5 - steps) * FLOPS)
    record = json.loads(Path("runs/5/version_0/record.json").read_text())
    assert record["total_flops"] == flops


def test_lengths_of_schedules_and_intervals_of_checkpoints_can_be_in_flops(timed, monkeypatch):
    saved, save = [], LastCheckpoint.save
    monkeypatch.setattr(LastCheckpoint, "save", lambda *given: saved.append(given[1].global_step) or save(*given))
    schedule = f"{{class_path: Linear, init_args: {{warmup: {2 * FLOPS} FLOP}}}}"
    options = ["--lr_schedule", schedule, "--last_checkpoint.every", f"{4 * FLOPS} FLOP"]
    _, slow = timed([1.0], "--time_budget.limit", f"{8 * FLOPS} FLOP", *options)
    assert slow.fractions == [step / 8 for step in range(8)]
    assert slow.rates == pytest.approx([1e-3, 2e-3, *(3e-3 * (8 - step) / 6 for step in range(2, 8))])
    assert sorted(set(saved)) == [4, 8]


def test_a_checkpoint_of_before_flops_were_counted_is_resumed(timed):
    timed([1.0], "--time_budget.limit", "4 steps")
    path = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["callbacks"]["TimeBudget"]["flops"]
    torch.save(checkpoint, path)
    budget, _ = timed([1.0], "--time_budget.limit", f"{6 * FLOPS} FLOP", "--ckpt_path", str(path))
    assert (budget.steps, budget.flops) == (6, 6 * FLOPS)


def test_progress_follows_the_clock(timed):
    _, slow = timed([1.0, 3.0, 2.0], "--time_budget.limit", "10s")
    assert slow.fractions == pytest.approx([0.0, 0.1, 0.4, 0.6, 0.8])


def test_a_long_first_step_is_not_taken_for_the_pace_of_others_where_the_clock_is_read_now_and_then(timed, monkeypatch):
    monkeypatch.setattr(time_budget, "runs_in_step_with_the_program", lambda *of: False)  # as on a GPU
    budget, slow = timed([1.0, *[0.1] * 99], "--time_budget.limit", "4.05s")
    assert slow.fractions == pytest.approx([0.0, *((1.0 + 0.1 * step) / 4.05 for step in range(30))])
    assert budget.training_seconds == pytest.approx(4.0)


def test_progress_follows_the_limit_that_is_nearest(timed):
    _, slow = timed([1.0], "--time_budget.limit", "[100s, 4 steps]")
    assert slow.fractions == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_the_final_validation_always_runs(timed):
    budget, _ = timed([1.0], "--time_budget.limit", "3s", "--trainer.val_check_interval", "1000")
    record = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert record["total_steps"] == budget.steps == 3
    assert record["val_bpb"] > 0


def losses(cli_run, *options):
    """Returns the exact training losses of a run, step by step."""

    class Losses(Callback):
        def __init__(self):
            self.values = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.values.append(float(outputs["loss"]))

    recorder = Losses()
    with added_callback(recorder):
        cli_run(*options)
    return recorder.values


DROPOUT = ("--model.gpt.dropout", "0.2", "--model.gpt.attention", "{class_path: SDPA, init_args: {dropout: 0.2}}")


@pytest.mark.parametrize(
    "options", thinned([(), DROPOUT, ("--data.order", "shuffled"), ("--model.optimizer", "MuonAdamW")], 3)
)
def test_the_warm_up_pass_changes_nothing(run, monkeypatch, options):
    with_warm_up = losses(run, *options)
    passes = []
    monkeypatch.setattr(time_budget, "warm_up", lambda *args: passes.append(1) or 0.0)
    assert losses(run, *options) == with_warm_up
    assert passes == [1]


@pytest.mark.parametrize("options", thinned([(), ("--data.order", "shuffled"), ("--model.optimizer", "MuonAdamW")], 2))
def test_a_resumed_run_has_what_was_left_and_resumes_as_if_uninterrupted(run, options):
    uncut = losses(run, "--time_budget.limit", "9 steps", *options)
    first = losses(run, "--time_budget.limit", "4 steps", "--experiment", "cut", *options)
    checkpoint = "runs/cut/version_0/checkpoints/last.ckpt"
    rest = losses(run, "--time_budget.limit", "9 steps", "--ckpt_path", checkpoint, *options)
    assert first + rest == uncut


def test_a_resumed_run_has_the_time_that_was_left(timed, clock, capsys):
    timed([0.9, 1.1, 0.5, 1.5], "--time_budget.limit", "4.2s", "--experiment", "cut")
    capsys.readouterr()
    budget, slow = timed([1.0], "--time_budget.limit", "10s", "--ckpt_path", "runs/cut/version_0/checkpoints/last.ckpt")
    assert "resume  after step 4, with 6s left" in capsys.readouterr().err
    assert (budget.steps, budget.training_seconds) == (10, pytest.approx(10.0))
    assert slow.fractions == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])  # and its schedule from the same progress


def test_a_budget_shorter_than_a_step_is_rejected(rejected):
    line = rejected("--time_budget.limit", "100 tok")
    assert "time_budget.limit" in line
    assert "'100 tok' cannot be used; it is shorter than one step, which takes 128 tok; accepted: from 128 tok" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["1ms"],
            "limit: '1ms' cannot be used; it is shorter than one step, which takes about 3s; accepted: from about 3s",
        ),
        (
            ["10s", "--time_budget.scope", "run", "--time_budget.reserve", "0%"],
            "takes about 3s, after about 9s since the start of the program; accepted: from about 12s",
        ),
    ],
)
def test_a_time_shorter_than_a_step_is_rejected_with_the_time_of_a_step(timed, clock, options, expected):
    if len(options) > 1:  # the warm-up has two passes
        clock.now += 3
    with pytest.raises(ConfigError) as raised:
        timed([3.0], "--time_budget.limit", *options)
    assert expected in str(raised.value)


@pytest.mark.parametrize("limit", thinned(["4 steps", "4s", "520 tok"], 2))
def test_a_run_that_has_used_up_its_budget_is_only_scored_when_it_continues(timed, capsys, limit):
    first, _ = timed([1.0], "--time_budget.limit", limit)
    before = torch.load("runs/tiny/version_0/checkpoints/last.ckpt")
    left = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert "wall_time_secs" not in left
    again, _ = timed([1.0], "--time_budget.limit", limit, "--ckpt_path", "last")
    after = torch.load("runs/tiny/version_0/checkpoints/last.ckpt")
    assert (first.steps, again.steps) == (4, 4)
    assert "nothing is trained" in capsys.readouterr().err
    record = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert record["total_steps"] == 4
    assert record["wall_time_secs"] == pytest.approx(left["total_time_secs"] + record["total_time_secs"], abs=0.01)
    for name, value in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], value), name


@pytest.mark.parametrize("quick", ["false", "true"])
@pytest.mark.parametrize("option", ["max_steps", "max_epochs", "min_steps", "min_epochs"])
def test_the_trainers_own_limits_are_rejected(rejected, option, quick):
    line = rejected(f"--trainer.{option}", "3", "--trainer.fast_dev_run", quick)
    assert f"trainer.{option}: 3" in line
    assert "time_budget.limit" in line


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": Duration.parse("5%")},
        {"limit": Duration.parse("0s")},
        {"limit": []},
        {"limit": Duration.parse("10s"), "scope": "run", "reserve": Duration.parse("10s")},
        {"limit": Duration.parse("10s"), "scope": "run", "reserve": Duration.parse("3 steps")},
        {"limit": Duration.parse("10s"), "reserve": Duration.parse("1s")},
        {"limit": Duration.parse("10 steps"), "scope": "run", "reserve": Duration.parse("1s")},
    ],
)
def test_impossible_budgets_are_rejected(arguments):
    with pytest.raises(ConfigError, match=r"time_budget\.(limit|reserve)"):
        TimeBudget(**arguments)


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (lambda: TimeBudget("3"), "time_budget.limit: '3' "),
        (lambda: TimeBudget(limit=5), "time_budget.limit: 5 "),
        (lambda: TimeBudget(["1s", None]), "time_budget.limit: None "),
        (lambda: TimeBudget("10s", scope="run", reserve="x"), "time_budget.reserve: 'x' "),
        (lambda: LastCheckpoint("x"), "last_checkpoint.every: 'x' "),
        (lambda: Cosine(warmup="200%"), "warmup: '200%' "),
    ],
)
def test_values_from_python_that_are_no_durations_are_rejected_with_their_option(made, key):
    with pytest.raises(ConfigError) as raised:
        made()
    line = str(raised.value)
    assert line.startswith(f"{key}cannot be used; accepted: a time (180s")
    assert ("share of the run" in line) == (not key.startswith("time_budget.limit"))


def test_two_ranks_train_on_their_own_rows_and_stop_together(folder):
    """Two ranks of batch 2 process the same rows as one of batch 4, and reach the same weights and score."""

    def train(*options):
        command = [sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml", "--time_budget.limit", "6 steps"]
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        ended = programs.run([*command, *options], env=environment)
        assert ended.returncode == 0, ended.stderr

    train("--experiment", "one")
    train("--experiment", "two", "--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "2")
    one, two = (json.loads(Path(f"runs/{name}/version_0/record.json").read_text()) for name in ("one", "two"))
    assert (two["world_size"], two["total_steps"], two["tokens_seen"]) == (2, 6, one["tokens_seen"])
    assert two["val_bpb"] == pytest.approx(one["val_bpb"], abs=1e-5)
    weights = [torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt")["state_dict"] for name in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=0)
