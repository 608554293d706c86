"""Whole runs on token shards: results, exact resuming, settings that are rejected before the folder exists."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from thinned import thinned
from token_shards import train_on_tokens

from bytelm import load
from bytelm.data.shard_file import write_shard
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import DataError


@pytest.fixture
def folder(folder):
    """The folder of all runs' tests, with shards in tokens/, and with a tiny.yaml that trains on them."""
    train_on_tokens()
    return folder


def read_record(experiment="tiny"):
    return json.loads(Path(f"runs/{experiment}/version_0/record.json").read_text())


def read_checkpoint(experiment, name="last"):
    return torch.load(f"runs/{experiment}/version_0/checkpoints/{name}.ckpt", weights_only=True)


def scalars(experiment="tiny"):
    events = EventAccumulator(f"runs/{experiment}/version_0")
    events.Reload()
    return events


def test_a_run_without_a_tokenizer_is_scored_by_its_loss(run, capsys):
    run("--trainer.val_check_interval", "2", "--model.gpt.dropout", "0.1")
    record = read_record()
    assert record["status"] == "completed"
    assert record["val_bpb"] is None
    assert 4 < record["val_loss"] < 7  # ln 320 is 5.8
    assert record["tokens_seen"] == 4 * 4 * 16
    assert record["corpus"]["name"] == "tokens"
    assert record["corpus"]["tokens"] == {"train": 4_000, "val": 2_000}
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["val_loss"] == f"{record['val_loss']:.4f}"
    assert "val_bpb" not in printed

    config = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == "val/loss"
    states = read_checkpoint("tiny", "best")["callbacks"]
    (best,) = [state for key, state in states.items() if key.startswith("BestCheckpoint")]
    assert best["monitor"] == "val/loss"
    assert float(best["best_model_score"]) == pytest.approx(min(e.value for e in scalars().Scalars("val/loss")))
    assert "val/bpb" not in scalars().Tags()["scalars"]
    assert b"val/loss" in scalars().summary_metadata["_hparams_/experiment"].plugin_data.content


def test_a_run_with_a_tokenizer_is_scored_in_bits_per_byte(run, capsys):
    run("--data.tokenizer", "bytes")
    record = read_record()
    assert record["val_bpb"] == pytest.approx(record["val_loss"] / np.log(2), abs=1e-5)
    out = capsys.readouterr().out
    assert f"val_bpb: {record['val_bpb']:.4f}" in out
    assert "val_loss" not in out
    config = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == "val/bpb"


def test_the_config_of_a_run_names_the_tokenizer_that_was_found(run, capsys):
    train_tokenizer(iter(["to be or not to be " * 9]), 262, Path("tokens/tokenizer.json"))
    options = ("--data.tokenizer", "auto", "--data.vocab_size", "null")
    run(*options)
    config = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    found = config["data"]["init_args"]
    assert (found["tokenizer"], found["vocab_size"]) == ("tokens/tokenizer.json", 262)
    assert read_record()["val_bpb"] > 0
    run(*options, "--ckpt_path", "last", "--time_budget.limit", "5 steps")
    assert "other values" not in capsys.readouterr().err
    Path("tokens/tokenizer.json").rename("tokens/other.json")
    with pytest.raises(DataError, match=r"data\.tokenizer: 'tokens/tokenizer\.json' cannot be used"):
        load("runs/tiny/version_0")


def test_checkpoint_settings_of_the_config(run):
    run("--data.tokenizer", "bytes", "--checkpoint.monitor", "val/loss")
    config = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == "val/loss"


@pytest.mark.parametrize("order", thinned(["random", "sequential"], 1))
def test_resumed_run_equals_uninterrupted_run(order, run):
    options = ("--data.order", order, "--trainer.accumulate_grad_batches", "2")
    run("--experiment", "whole", "--time_budget.limit", "9 steps", *options)
    run("--experiment", "cut", "--time_budget.limit", "5 steps", *options)
    assert read_checkpoint("cut")["TokenShards"]["position"] == 5 * 2 * 4
    run("--experiment", "cut", "--time_budget.limit", "9 steps", "--ckpt_path", "last", *options)
    whole, cut = read_checkpoint("whole"), read_checkpoint("cut")
    assert whole["TokenShards"] == cut["TokenShards"]
    assert whole["TokenShards"]["position"] == 9 * 2 * 4
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][name]), name
    losses = [[event.value for event in scalars(name).Scalars("train/loss")] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert read_record("whole")["val_loss"] == read_record("cut")["val_loss"]


def test_the_resolved_config_repeats_the_run(run):
    run()
    run(config="runs/tiny/version_0/config.yaml")
    first, second = (Path(f"runs/tiny/version_{n}/record.json") for n in (0, 1))
    assert json.loads(first.read_text())["train_loss"] == json.loads(second.read_text())["train_loss"]


def test_a_checkpoint_is_validated_and_tested(run, capsys):
    run()
    capsys.readouterr()
    for subcommand, split in (("validate", "val"), ("test", "test")):
        run("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", subcommand=subcommand)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{split}_loss: ")
    assert float(line.split()[1]) > 0


def test_tokens_above_vocab_size_are_rejected(rejected):
    assert "vocab_size: 320 cannot be used; accepted: from 321" in rejected("--data.vocab_size", "321")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--data.path", "none"),
            ["data.path: 'none'", "not found in /", "accepted: a folder with .bin files"],
        ),
        (("--data.vocab_size", "200"), ["data.vocab_size: 200", "tokens/text_train_1.bin has token 255"]),
        (("--data.seq_len", "16", "--data.val", "tokens/short.bin"), ["data.seq_len: 16", "accepted: up to 15"]),
        (("--data.train", "tokens/cut.bin"), ["'tokens/cut.bin'", "it is cut short"]),
    ],
)
def test_invalid_shards_are_rejected_in_one_line(options, words, rejected):
    np.ones(16, np.uint16).tofile("tokens/short.bin")
    Path("tokens/cut.bin").write_bytes(Path("tokens/text_val_1.bin").read_bytes()[:-100])
    line = rejected(*options, status=DataError.exit_status)
    assert [word for word in words if word not in line] == []
    assert not Path("runs").exists()


def test_resuming_with_other_shards_is_rejected(run, rejected, capsys):
    run()
    capsys.readouterr()
    write_shard("tokens/text_train_2.bin", np.ones(2_000))
    line = rejected("--ckpt_path", "last", status=DataError.exit_status)
    assert "data: 'tokens' cannot be used; it has changed since the checkpoint was written" in line


def test_a_bad_token_in_the_middle_of_a_run_is_in_the_record(run, monkeypatch):
    monkeypatch.setattr("bytelm.data.shards.SCANNED", 1)
    tokens = np.ones(200, np.uint16)
    tokens[100] = 310
    write_shard("tokens/text_train_1.bin", tokens)
    with pytest.raises(DataError):
        run("--data.order", "sequential")
    record = read_record()
    assert record["status"] == "error"
    assert "tokens/text_train_1.bin has token 310; accepted: from 311" in record["reason"]
