"""A corpus that changes during a run ends it with status 3, a record, and a checkpoint that resumes exactly."""

import json
import os
from pathlib import Path

import pytest
import torch
from thinned import thinned
from token_shards import train_on_tokens

from bytelm.callbacks import corpus_watch
from bytelm.data import corpora
from bytelm.program import main

LAST = "runs/tiny/version_0/checkpoints/last.ckpt"
SHARDS = [f"tokens/text_{name}.bin" for name in ("train_1", "train_2", "val_1")]
CALLBACK = """
import os
from pathlib import Path
from lightning.pytorch import Callback

def truncate(path):
    os.truncate(path, 1100)

def overwrite(path):
    content = Path(path).read_bytes()
    with open(path, "r+b") as file:
        file.write(content[:1100] + bytes(len(content) - 1100))

def replace(path):
    Path("new").write_bytes(bytes(9))
    os.replace("new", path)

def touch(path):
    os.utime(path, (1, 1))

class Change(Callback):
    def __init__(self, how: str, paths: list[str], step: int = 4, hook: str = "on_train_batch_start"):
        setattr(self, hook, lambda trainer, *args: trainer.global_step == step - 1 and [
            globals()[how](path) for path in paths])
"""


@pytest.fixture
def shards(folder, monkeypatch):
    """Training shards in tokens/, in a folder with my_change.py; checked after every step."""
    train_on_tokens()
    Path("my_change.py").write_text(CALLBACK)
    monkeypatch.setattr(corpus_watch, "SECONDS", 0.0)


def change(how, *paths, **options):
    values = {"class_path": "my_change.Change", "init_args": {"how": how, "paths": paths, **options}}
    return f"--trainer.callbacks+={json.dumps(values)}"


@pytest.fixture
def ended(capsys):
    """Runs main() on tiny.yaml for 8 steps; returns its exit status, its record and its output on stderr."""

    def ended(*options, experiment="tiny"):
        status = 0
        try:
            main(["fit", "--config", "tiny.yaml", "--time_budget.limit", "8 steps", *options])
        except SystemExit as end:
            status = end.code
        record = json.loads(Path(f"runs/{experiment}/version_0/record.json").read_text())
        return status, record, capsys.readouterr().err

    return ended


def step_of(path):
    return torch.load(path, weights_only=True)["callbacks"]["TimeBudget"]["steps"]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("how", ["truncate", "overwrite"])
def test_a_run_ends_after_the_step_in_which_a_shard_changes(how, shards, ended):
    status, record, stderr = ended(change(how, *SHARDS))
    assert status == 3
    (line,) = [line for line in stderr.splitlines() if "error" in line]
    reason = {
        # Either the check after the step detects it, or a crop of the next batches cannot be read.
        "truncate": ("has 1100 bytes, and had 5024", "it was cut short while it was in use"),
        "overwrite": ("text_train_1.bin was written to: the sha256 is ",),
    }[how]
    assert any(part in line for part in reason)
    assert (record["status"], record["checkpoint"]) == ("error", LAST)
    assert line.endswith(record["reason"])
    assert step_of(LAST) == record["total_steps"] <= 4
    assert f"step {record['total_steps']} is in {LAST}; --ckpt_path last resumes from there" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("batches", thinned(["1", "3"], 1))
@pytest.mark.parametrize("data", ["shards", "bytes"])
def test_the_checkpoint_continues_exactly_when_the_file_is_back(data, batches, shards, ended, monkeypatch):
    options = ["--trainer.accumulate_grad_batches", batches]
    paths = SHARDS
    if data == "bytes":
        monkeypatch.setattr(corpora, "READ_AT_MOST", 0)  # forces mapping
        options += ["--data", "Bytes", "--data.path", "corpus.txt", "--data.batch_size", "4", "--data.seq_len", "16"]
        paths = ["corpus.txt"]
    before = {path: Path(path).read_bytes() for path in paths}
    assert ended(*options, "--experiment", "whole", experiment="whole")[0] == 0
    status, record, _ = ended(*options, change("overwrite" if data == "bytes" else "truncate", *paths))
    assert status == 3
    assert 0 < record["total_steps"] < 8
    for path, content in before.items():
        Path(path).write_bytes(content)
    assert ended(*options, "--ckpt_path", "last")[0] == 0
    whole = weights("runs/whole/version_0/checkpoints/last.ckpt")
    gone_on = weights(LAST)
    if data == "bytes":  # the step in which it was overwritten may have read the new text
        assert step_of(LAST) == 8
    else:
        assert [name for name in whole if not torch.equal(whole[name], gone_on[name])] == []


@pytest.mark.parametrize("how", ["replace", "touch"])
def test_a_run_continues_if_its_files_are_unchanged(how, shards, ended):
    status, record, stderr = ended(change(how, *SHARDS))
    assert (status, record["status"], record["total_steps"]) == (0, "completed", 8)
    noted = f"{SHARDS[0]} was written to during the run; its size and the data's sha256 are the same"
    assert (noted in stderr) == (how == "touch")


@pytest.mark.parametrize("how", ["truncate", "overwrite"])
def test_a_score_of_a_changed_corpus_does_not_count(how, shards, ended):
    status, record, _ = ended(change(how, SHARDS[2], step=9, hook="on_validation_start"))
    assert status == 3
    assert (record["status"], record["checkpoint"]) == ("error", LAST)
    assert step_of(LAST) == 8


def test_files_are_looked_at_once_a_second(shards, ended, monkeypatch):
    monkeypatch.setattr(corpus_watch, "SECONDS", 1000.0)
    looks = []
    monkeypatch.setattr("bytelm.data.shards.TokenShards.changed", lambda self: looks.append(1))
    monkeypatch.setattr("time.monotonic", lambda: 5000.0)
    assert ended()[0] == 0
    assert len(looks) == 3  # after the first step, after the last one, and after scoring


def test_a_text_in_memory_may_change(folder, ended):
    Path("my_change.py").write_text(CALLBACK)
    status, record, _ = ended(change("truncate", "corpus.txt"))
    assert (status, record["status"]) == (0, "completed")
    assert os.path.getsize("corpus.txt") == 1100
