"""Whole runs with an n-gram memory: score, rejected settings, resuming."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from added_callback import added_callback
from resuming import CURVES, Signal, assert_same_checkpoints
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ranks import Run, write_inputs

from bytelm.errors import CheckpointError, ConfigError, Interrupted
from bytelm.kernels import ngram_memory
from bytelm.parts.ngram_counts import NGramCounts, _triples

FOLDS = ("--data.order", "folds")
MEMORY = (
    *FOLDS,
    "--model.gpt.memory={class_path: NGramMemory, init_args: {orders: [1, 2, 4], words: [1, 2], cache: [2]}}",
    "--model.gpt.init",
    "FanIn",
)
TWELVE = ("--time_budget.limit", "12 steps", "--trainer.val_check_interval", "4")
LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


def record(experiment="tiny", version=0):
    return json.loads(Path(f"runs/{experiment}/version_{version}/record.json").read_text())


def printed(out):
    return dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)


def test_memory_improves_the_score(run):
    run("--experiment", "with", *TWELVE, *MEMORY)
    run("--experiment", "without", *TWELVE, *FOLDS, "--model.gpt.init", "FanIn")
    assert record("with")["status"] == record("without")["status"]
    assert 0 < record("with")["val_bpb"] < record("without")["val_bpb"] - 1


def test_each_step_holds_out_the_fold_of_its_batch_and_validation_nothing(run, monkeypatch):
    held_out = []
    monkeypatch.setattr(ngram_memory, "is_available", lambda device, dtype: False)  # the kernel looks up by itself
    monkeypatch.setattr(NGramCounts, "look_up", spy(NGramCounts.look_up, lambda self: held_out.append(self.held_out)))
    cli = run(*TWELVE, *MEMORY, "--data.batch_size", "16")
    training = [fold for fold in held_out if fold is not None]
    assert held_out.count(None) > 0
    assert len(set(training)) >= 3
    assert held_out[-1] is None, "the final validation knows all of the text"
    assert cli.model.gpt.memory._tables[0].held_out is None


def test_a_budget_that_the_filling_uses_up_ends_the_run_before_its_first_step(run, monkeypatch):
    """Each piece of text whose contexts are sorted takes 0.1 s here."""
    made = []

    def late(*args):
        made.append(args)
        time.sleep(0.1)
        return _triples(*args)

    monkeypatch.setattr("bytelm.kernels.ngram_memory.is_available", lambda *of: False)  # it counts in larger pieces
    monkeypatch.setattr("bytelm.parts.memory.release_memory", lambda: None)  # it takes as long in a process of tests
    monkeypatch.setattr("bytelm.parts.ngram_counts.PIECE", 1000)
    monkeypatch.setattr("bytelm.parts.ngram_counts._triples", late)
    with pytest.raises(ConfigError, match=r"'0\.2s' cannot be used; it was used up before the first step"):
        run("--time_budget.limit", "0.2s", *MEMORY)
    assert 1 <= len(made) <= 2, "no more is counted when the time is up"
    assert record()["status"] == "error"
    assert record()["total_steps"] == 0
    assert record()["training_time_secs"] >= 0.2


def spy(method, before):
    def called(self, *args):
        before(self)
        return method(self, *args)

    return called


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_orders_that_leak_training_text_are_rejected(order, rejected):
    line = rejected(*MEMORY, "--data.order", order)
    assert f"data.order: {order!r} cannot" in line
    assert "NGramMemory" in line
    assert "folds" in line


def test_invalid_options_of_the_memory_are_rejected(rejected):
    line = rejected(*FOLDS, "--model.gpt.memory={class_path: NGramMemory, init_args: {orders: [4, 2]}}")
    assert "orders: [4, 2]" in line


def test_validate_repeats_the_score(run, capsys):
    run(*TWELVE, *MEMORY)
    fitted = printed(capsys.readouterr().out)["val_bpb"]
    run(*MEMORY, "--ckpt_path", LAST, subcommand="validate")
    assert printed(capsys.readouterr().out)["val_bpb"] == fitted


def test_checkpoint_contains_only_the_training_text(run):
    text = Path("corpus.txt").read_bytes()
    cut = int(len(text) * 0.9)
    secret = bytes(random.Random(9).choices(range(97, 123), k=40))
    Path("corpus.txt").write_bytes(text[: cut + 500] + secret + text[cut + 540 :])
    run(*MEMORY)
    saved = torch.load(LAST, weights_only=True)["state_dict"]["gpt.memory._extra_state"]
    assert bytes(saved.tolist()) == text[:cut]
    assert secret not in Path(LAST).read_bytes()


@pytest.mark.parametrize(
    ("hook", "n"),
    [
        ("on_before_optimizer_step", 7),
        pytest.param("on_train_batch_start", 1, marks=pytest.mark.slow),
        pytest.param("on_validation_batch_start", 3, marks=pytest.mark.slow),
    ],
)
def test_resumed_run_equals_uninterrupted_run(hook, n, run):
    run("--experiment", "uncut", *TWELVE, *MEMORY)
    with added_callback(Signal(hook, n)), pytest.raises(Interrupted):
        run("--experiment", "cut", *TWELVE, *MEMORY)
    run("--experiment", "cut", "--ckpt_path", "last", *TWELVE, *MEMORY)
    assert_same_checkpoints("runs/uncut/version_0", "runs/cut/version_0")
    assert curve_of_files("runs/cut/version_0") == curve_of_files("runs/uncut/version_0")


def curve_of_files(folder):
    """Values by tag and step. Of each file by itself: within a second, TensorBoard takes writer 10 to be before 9."""
    values = {}
    for file in Path(folder).glob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in {*CURVES} & {*events.Tags()["scalars"]}:
            values.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    return values


def test_checkpoint_with_a_memory_of_another_model_is_rejected(run):
    run(*MEMORY)
    with pytest.raises(CheckpointError, match=r"model\.gpt\.memory"):
        run(*FOLDS, "--ckpt_path", LAST, subcommand="validate")


DUMP = """
import torch
from lightning.pytorch import Callback


class Dump(Callback):
    def __init__(self):
        self.folds = []

    def on_before_backward(self, trainer, module, loss):
        self.folds.append(module.gpt.memory._tables[0].held_out if module.gpt.memory._tables else -1)

    def on_train_end(self, trainer, module):
        memory = module.gpt.memory
        tables = [[table._keys, table._tokens, table._counts] for table in memory._tables]
        state = {"backoff": memory.backoff, "symbols": memory.symbols, "tables": tables, "folds": self.folds}
        state["weights"] = [p.detach() for p in module.parameters()]
        torch.save(state, f"memory{trainer.global_rank}.pt")
"""


def test_two_ranks_have_the_same_memory(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "my_dump.py").write_text(DUMP)
    run = Run(tmp_path, *MEMORY, "--time_budget.limit", "20 steps", "--trainer.callbacks+=my_dump.Dump")
    try:
        run.ended_well()
    finally:
        run.kill()
    assert 0 < run.record()["val_bpb"] < 4
    zero, one = (torch.load(tmp_path / f"memory{rank}.pt") for rank in (0, 1))
    assert zero["folds"] == one["folds"]
    assert len({fold for fold in zero["folds"] if fold != -1}) >= 2
    for a, b in zip(flat(zero), flat(one), strict=True):
        assert torch.equal(a, b)


def flat(state):
    tables = [tensor for table in state["tables"] for tensor in table]
    return [state["backoff"], state["symbols"], *tables, *state["weights"]]


def zipf_words(rng):
    words = [bytes(random.Random(seed).choices(range(97, 123), k=2 + seed % 7)) for seed in range(5_000)]
    return b" ".join(rng.choices(words, [1 / rank for rank in range(1, 5_001)], k=1_200_000))


def uniform_words(rng):
    words = [bytes(random.Random(seed).choices(range(97, 123), k=2 + seed % 7)) for seed in range(5_000)]
    return b" ".join(rng.choices(words, k=1_200_000))


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("make", [zipf_words, uniform_words, lambda rng: rng.randbytes(6_000_000)])
def test_the_speedrun_stays_below_950_mb_for_6_mb_of_text(make, tmp_path):
    """The largest resident memory of the program and of each of its processes. Random bytes have the most contexts."""
    (tmp_path / "corpus.bin").write_bytes(make(random.Random(0))[:6_000_000])
    config = Path(__file__).resolve().parents[1] / "configs/speedrun/shakespeare-180s.yaml"
    options = ["--data", "Bytes", "--data.path", "corpus.bin", "--data.batch_size", "24", "--data.order", "folds"]
    limits = ["--time_budget.limit", "10 steps", "--data.eval_bytes", "200000"]
    program = [sys.executable, "-m", "bytelm", "fit", "--config", str(config), *options, *limits]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "2"}
    # A process of its own: here, the children of other tests count too.
    watched = [sys.executable, "-c", PEAK, *program]
    ended = subprocess.run(watched, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    peak_kb = int(ended.stdout)
    assert peak_kb * 1024 < 950e6
