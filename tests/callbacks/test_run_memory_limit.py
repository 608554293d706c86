"""A run with a limit of its memory: rejected by an estimate, ended by what it uses, or not affected."""

import json
from pathlib import Path

import pytest
import torch

from bytelm.callbacks import MemoryLimit
from bytelm.errors import ConfigError, OutOfMemory, UsageError
from bytelm.parts.memory import NGramMemory

MODULE = "bytelm.callbacks.memory_limit"
KEY = r"trainer\.callbacks\.MemoryLimit\.limit"
STEPS = ("--time_budget.limit", "4 steps", "--trainer.log_every_n_steps", "2")
FOLDS = ("--data.order", "folds", "--model.gpt.memory", "NGramMemory")


def limit(size):
    return (*STEPS, "--trainer.callbacks+=MemoryLimit", "--trainer.callbacks.limit", size)


def test_a_run_that_needs_more_is_rejected_before_its_first_step(run, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.memory_mb", lambda: 300.0)
    monkeypatch.setattr(NGramMemory, "memory_bytes", lambda self, data: 2**20 * len(data.train_split) // 1000)
    with pytest.raises(ConfigError, match=rf"{KEY}: '305MiB' cannot be used; the run needs about 31\d MiB") as error:
        run(*limit("305MiB"), *FOLDS)
    assert "300 in use" in str(error.value)
    assert "for NGramMemory); accepted: a larger limit" in str(error.value)
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["total_steps"] == 0


def test_the_compiler_counts(run, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.memory_mb", lambda: 300.0)
    monkeypatch.setattr("bytelm.language_model.LanguageModel.is_compiled", True)
    with pytest.raises(ConfigError, match=r"300 in use, 90 for the compiler\)"):
        run(*limit("350MiB"))


@pytest.mark.parametrize(
    ("peaks", "when"),
    [
        ([500], "before the first step"),
        ([300, 500], "in training"),
        ([300, 300, 300, 500], "in validation"),
    ],
    ids=["preparation", "training", "validation"],
)
def test_a_run_that_uses_more_ends_in_one_line(peaks, when, run, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.memory_mb", lambda: 300.0)
    readings = iter([300, *peaks])  # the first is the constructor's
    monkeypatch.setattr(f"{MODULE}.peak_memory_mb", lambda: float(next(readings)))
    with pytest.raises(OutOfMemory, match=rf"{KEY}: '400MiB' was exceeded {when} \(500 MiB\); accepted: a larger"):
        run(*limit("400MiB"))


def test_a_run_within_its_limit_is_not_affected(run):
    run(*STEPS, "--experiment", "without")
    run(*limit("100GiB"), "--experiment", "with")
    records = [json.loads(Path(f"runs/{name}/version_0/record.json").read_text()) for name in ("with", "without")]
    assert records[0]["val_bpb"] == records[1]["val_bpb"]
    assert [record["total_steps"] for record in records] == [4, 4]


def test_a_limit_has_a_unit(run):
    with pytest.raises(UsageError, match=r"accepted: 512MiB, 4GiB, 4GB"):
        run(*limit("900"))


def test_the_estimate_of_a_memory_grows_with_text_and_contexts():
    class Data:
        train_split = torch.zeros(1_000, dtype=torch.uint8)

    few, many = NGramMemory(256, 16, orders=[3], words=[]), NGramMemory(256, 16)
    assert 1_000 * 20 < few.memory_bytes(Data) < many.memory_bytes(Data) < 1_000 * 100
    Data.train_split = torch.zeros(2_000, dtype=torch.uint8)
    assert 2 * few.memory_bytes(Data) > 1_000 * 50


def test_a_system_that_reports_no_memory_is_rejected(monkeypatch):
    monkeypatch.setattr(f"{MODULE}.memory_mb", lambda: None)
    with pytest.raises(ConfigError, match="this system does not report"):
        MemoryLimit("1GiB")
