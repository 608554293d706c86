"""scripts/benchmark.py on a tiny run: what it measures is what the config says.

With --peak, shares are of the peak, parts are of the step, and all of it is printed.
The slow callback makes a step long enough for its parts to be told from the noise of the machine.
"""

import statistics
import time
from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback

from scripts import benchmark
from scripts.benchmark import PARTS, PartTimer, Product, measure_products, measure_training, peak_report, peaks

SLOW = "--trainer.callbacks+=test_benchmark.Slow"
CPU = torch.device("cpu")


class Slow(Callback):
    """Takes its time in the middle of the backward part."""

    seconds = 0.03

    def on_before_backward(self, *args):
        time.sleep(self.seconds)


@pytest.fixture
def short(folder, monkeypatch):
    """A tiny experiment, few steps and small matrices."""
    for name, value in {"WARM_UP_STEPS": 2, "MEASURED_STEPS": 8, "PROFILED_STEPS": 2}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "SQUARES", (32, 64))
    monkeypatch.setattr(benchmark, "PRODUCT_SECONDS", 0.001)


def value_of(row, report):
    (line,) = [line for line in report.splitlines() if line.startswith(row)]
    return line.split()[-1]


def test_parts_are_of_the_step(short):
    training = measure_training("tiny.yaml", [SLOW])
    assert len(training.step_seconds) == len(training.step_parts) == 8
    assert all(seconds > 0 for seconds in training.parts.values())
    assert sum(training.parts.values()) == pytest.approx(statistics.median(training.step_seconds), rel=0.5)
    assert training.parts["rest"] >= Slow.seconds  # where it is called from does not matter
    assert training.step_tokens == 4 * 32
    calls, seconds = training.operators["aten::addmm" if "aten::addmm" in training.operators else "aten::mm"]
    assert calls > 0
    assert 0 < seconds < training.profiled_seconds


def test_a_step_is_all_the_batches_that_are_accumulated(short):
    training = measure_training("tiny.yaml", [SLOW, "--trainer.accumulate_grad_batches", "3"])
    assert training.step_tokens == 3 * 4 * 32
    assert len(training.step_parts) == 8
    assert training.parts["rest"] >= 3 * Slow.seconds


def test_the_report_has_every_row_and_its_shares_are_of_the_peak(short):
    training = measure_training("tiny.yaml")
    training.token_flops *= 1000  # so that the figures have digits
    products = measure_products(CPU, training.linears)
    report = peak_report(training, products)
    reached = peaks(products)
    assert reached[torch.float32] == max(p.gflops[torch.float32] for p in products[:2])
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        share = float(value_of(f"share of the {name} peak", report).rstrip("%")) / 100
        assert share == pytest.approx(training.gflops / reached[dtype], abs=6e-4)
    flops = training.tokens_per_second * training.token_flops
    assert float(value_of("model GFLOP/s", report)) == pytest.approx(flops / 1e9, abs=0.06)
    for part in PARTS:
        assert value_of(part, report).endswith("%")
    assert report.count("100.0%") == 2  # the step, by part and by operator
    for row in ("32 x 32 x 32", "64 x 64 x 64", "128 x 16 x 48, forward, 1 of them", "128 x 32 x 16, weight gradient"):
        assert float(value_of(row, report)) >= 0  # products so small may round to 0.0 on a busy machine
    for row in ("tokens/s", "FLOPs a token", "the network's of a step, ms", "no operator at work", "other operators"):
        assert value_of(row, report)


def test_each_shape_is_measured_once(short):
    products = measure_products(CPU, Counter({(8, 4, 4): 6, (8, 4, 2): 1}))
    own = [(p.shape, p.kind, p.layers) for p in products if p.layers]
    assert len(own) == len(set(own)) == 2 * 3
    assert own[0] == ((8, 4, 4), "forward", 6)


def test_what_a_machine_cannot_or_only_slowly_is_left_out(short, monkeypatch):
    assert benchmark.product_gflops(Product((8, 8, 8), "forward"), torch.bool, CPU) is None
    monkeypatch.setattr(benchmark, "PATIENCE", 0.0)
    smallest, *others = measure_products(CPU, Counter({(8, 4, 4): 6}))
    assert smallest.gflops[torch.float32] > 0
    assert [p.gflops[torch.float32] for p in others] == [None] * 4
    report = "\n".join(benchmark.product_lines([smallest, *others], 1))
    assert value_of("the network's of a step, ms", report) == "-"


def test_nested_parts_are_told_apart(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    timer = PartTimer()
    timer.begin(lambda: None)
    with timer.profile("run_training_batch"), timer.profile("[LightningModule]LanguageModel.optimizer_step"):
        with (
            timer.profile("[Strategy]SingleDeviceStrategy.backward"),
            timer.profile("[Callback]Log.on_before_backward"),
        ):
            pass
        with timer.profile("[LightningModule]LanguageModel.configure_gradient_clipping"):
            pass
    # One reading at every change: rest, optimizer, backward, rest (the callback), backward, optimizer, rest.
    assert timer.split() == {"data": 0, "forward": 0, "backward": 2, "optimizer": 2, "rest": 3}
    assert sum(timer.split().values()) == 1


def test_the_command_prints_nothing_else(short, monkeypatch, capsys):
    options = ["--peak", "--config", "tiny.yaml", "--", "--trainer.precision", "bf16-mixed"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *options])
    benchmark.main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("precision bf16-mixed")
    assert not any(line.startswith("val_bpb") for line in rest)
    assert rest[-1].startswith("step")


# The plain loop, and what callbacks take


def test_the_plain_loop_trains_what_the_config_says(folder):
    changes = ["--trainer.accumulate_grad_batches=2", "--trainer.precision=bf16-mixed"]
    result = benchmark.plain_loop("tiny.yaml", 0.1, changes)
    batches = 2 * result["total_steps"]
    assert result["training_time_secs"] >= 0.1
    assert result["tokens_per_sec"] == pytest.approx(batches * 4 * 32 / result["training_time_secs"])


def test_callbacks_are_timed_in_a_changed_config(folder):
    table = benchmark.time_callbacks("tiny.yaml", 1.0, ["--trainer.enable_progress_bar=false"])
    assert "| TimeBudget |" in table
    assert "| BudgetBar |" not in table
