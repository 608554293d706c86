"""scripts/benchmark.py and the plain loop on a tiny run, including --peak: measurements match the config.
The slow callback makes a step long enough to distinguish its parts from the noise of the machine.
"""

import statistics
import time
from collections import Counter

import pytest
import torch
from benchmarks import peak
from benchmarks.peak import PARTS, PartTimer, Product, measure_products, measure_training, peak_report, peaks
from lightning.pytorch import Callback

from bytelm.cli import build
from scripts import benchmark
from scripts.plain_loop import WARM_UP_STEPS, PlainLoop

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
        monkeypatch.setattr(peak, name, value)
    monkeypatch.setattr(peak, "SQUARES", (32, 64))
    monkeypatch.setattr(peak, "PRODUCT_SECONDS", 0.001)


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


def test_step_contains_all_accumulated_batches(short):
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
    for row in ("tokens/s", "FLOPs a token", "the network's products of a step, ms", "no operator", "other operators"):
        assert value_of(row, report)


def test_each_shape_is_measured_once(short):
    products = measure_products(CPU, Counter({(8, 4, 4): 6, (8, 4, 2): 1}))
    own = [(p.shape, p.kind, p.layers) for p in products if p.layers]
    assert len(own) == len(set(own)) == 2 * 3
    assert own[0] == ((8, 4, 4), "forward", 6)


def test_unsupported_and_slow_products_are_left_out(short, monkeypatch):
    assert peak.product_gflops(Product((8, 8, 8), "forward"), torch.bool, CPU) is None
    monkeypatch.setattr(peak, "PATIENCE", 0.0)
    smallest, *others = measure_products(CPU, Counter({(8, 4, 4): 6}))
    assert smallest.gflops[torch.float32] > 0
    assert [p.gflops[torch.float32] for p in others] == [None] * 4
    report = peak.product_table([smallest, *others], 1)
    assert value_of("the network's products of a step, ms", report) == "-"


def test_nested_parts_are_timed_separately(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(clock))
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


def test_the_command_prints_only_the_report(short, monkeypatch, capsys):
    options = ["--peak", "--config", "tiny.yaml", "--", "--trainer.precision", "bf16-mixed"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *options])
    benchmark.main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("precision bf16-mixed")
    assert not any(line.startswith("val_bpb") for line in rest)
    assert rest[-1].startswith("step")


# The plain loop

DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]
SKEWED = """
import os, runpy, time
clock = time.perf_counter
time.perf_counter = lambda: clock() * (1 + 9 * int(os.environ["RANK"]))
runpy.run_path({!r}, run_name="__main__")
"""


def tiny(*options):
    return build(["--config", "tiny.yaml", *options], run=False)


def test_the_plain_loop_trains_as_the_config_states(folder):
    result = PlainLoop(tiny("--trainer.accumulate_grad_batches=2", "--trainer.precision=bf16-mixed")).run(0.1)
    batches = 2 * result["total_steps"]
    assert result["training_time_secs"] >= 0.1
    assert result["tokens_per_sec"] == pytest.approx(batches * 4 * 32 / result["training_time_secs"])


@pytest.mark.slow
def test_plain_loop_on_two_ranks_equals_one_process_with_all_rows(folder, monkeypatch):
    """With SGD, whose result depends on the size of gradients. Rank 1's clock is ten times as fast."""
    (folder / "skewed.py").write_text(SKEWED.format(str(benchmark.PLAIN_LOOP)))
    monkeypatch.setattr(benchmark, "PLAIN_LOOP", folder / "skewed.py")
    monkeypatch.setattr(benchmark, "ROOT", folder)
    changes = ["--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=3", "--trainer.gradient_clip_val=0"]
    changes += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    ranks = benchmark.run_plain_loop("tiny.yaml", 0.1, [*changes, *DDP], 2)
    steps, seconds = ranks["total_steps"], ranks["training_time_secs"]
    assert seconds >= 0.1
    assert steps % 3 == 0  # what rank 0's clock says is told every three
    assert ranks["tokens_per_sec"] == pytest.approx(steps * 2 * 8 * 32 / seconds)
    losses = losses_of_one_process(tiny(*changes, "--data.batch_size=8"), WARM_UP_STEPS + steps)
    assert losses[-1] < losses[0] - 0.5
    assert ranks["train_loss"] == pytest.approx(losses[-1], rel=1e-5)


def losses_of_one_process(cli, steps):
    """Loss in the second batch of each step, whose gradient is that of two batches."""
    batches = iter(cli.datamodule.train_dataloader())
    optimizer = cli.model.configure_optimizers()
    losses = []
    for _ in range(steps):
        first, second = (cli.model.training_step(next(batches), 0) for _ in range(2))
        ((first + second) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(second.item())
    return losses


# The table


@pytest.fixture
def rows(folder, monkeypatch, capsys):
    """Runs the command without the training; returns the table's rows by contender and devices, and all lines."""
    monkeypatch.delenv("BYTELM_REFERENCE", raising=False)

    def trained(speeds):
        def run(config, seconds, overrides, devices=None):
            asked = benchmark.build_cli(config, *overrides).trainer.num_devices
            assert devices in (None, asked)
            speed = {"total_steps": 10, "training_time_secs": seconds, "tokens_per_sec": speeds[asked]}
            return {**speed, "mfu": speeds[asked] / 4000, "startup_time_secs": 1.0}

        return run

    monkeypatch.setattr(benchmark, "run_bytelm", trained({1: 1000.0, 2: 1900.0}))
    monkeypatch.setattr(benchmark, "run_plain_loop", trained({1: 1000.0, 2: 1750.0}))

    def rows(*options):
        monkeypatch.setattr("sys.argv", ["benchmark.py", "--config", "tiny.yaml", "--repeats", "2", *options])
        benchmark.main()
        lines = capsys.readouterr().out.splitlines()
        header, _, *table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
        return {(name, devices): dict(zip(header[2:], rest, strict=True)) for name, devices, *rest in table}, lines

    return rows


@pytest.mark.slow
def test_scaling_is_the_ratio_to_one_device(rows):
    table, _ = rows("--scaling", "--", *DDP)
    ratios = {contender: row["all devices / one, median of pairs"] for contender, row in table.items()}
    assert ratios["bytelm", "2"] == "1.900"
    assert ratios["plain loop", "2"] == "1.750"
    assert ratios["bytelm", "1"] == ratios["plain loop", "1"] == ""
    assert table["plain loop", "2"]["tokens/s"] == "1,750"
    assert table["plain loop", "2"]["MFU"] == "43.8%"


def test_without_scaling_only_all_devices_run(rows):
    table, _ = rows("--", *DDP)
    assert list(table) == [("bytelm", "2"), ("plain loop", "2")]


def test_fsdp_has_no_plain_loop_and_prints_a_line(rows):
    table, lines = rows("--", "--trainer.devices=2", "--trainer.strategy=fsdp")
    assert list(table) == [("bytelm", "2")]
    assert lines[-1] == "no plain loop: it supports one device and ddp, not FSDP"


def test_one_device_has_no_scaling(rows):
    with pytest.raises(SystemExit, match="has one device"):
        rows("--scaling")


# Time of callbacks


def test_callbacks_are_timed_in_a_changed_config(folder):
    table = benchmark.time_callbacks("tiny.yaml", 1.0, ["--trainer.enable_progress_bar=false"])
    assert "| TimeBudget |" in table
    assert "| BudgetBar |" not in table
