"""`fit --init_from`: a run starts with another network's weights, and with nothing else of it."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from thinned import thinned

from bytelm.cli import build
from bytelm.inference.convert import export_weights
from bytelm.language_model import LanguageModel
from bytelm.program import main
from bytelm.runs.record import check

LEARNED = ["--model.gpt.position", "Learned", "--model.gpt.d_ff", "64"]
SOURCE = "runs/source/version_0/checkpoints/last.ckpt"
FIRST = ["--trainer.callbacks+", "my_callbacks.First"]
CALLBACK = """
import torch
from lightning.pytorch import Callback

class First(Callback):
    def on_train_start(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), "first.pt")
        torch.save(trainer.optimizers[0].state_dict(), "first_optimizer.pt")
"""


@pytest.fixture
def source(run):
    """A run on other text, in runs/source, and a working folder with a callback that records a run's first state."""
    Path("my_callbacks.py").write_text(CALLBACK)
    Path("other.txt").write_text("What a piece of work is a man, how noble in reason! " * 400)
    run(*LEARNED, "--experiment", "source", "--data.path", "other.txt", "--model.optimizer.lr", "1e-2")
    return weights(SOURCE)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def record(experiment="tiny", version=0):
    return json.loads(Path(f"runs/{experiment}/version_{version}/record.json").read_text())


def sha256(*files):
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def assert_begins_with(expected):
    first = torch.load("first.pt", weights_only=True)
    assert first.keys() == expected.keys()
    assert [name for name in first if not torch.equal(first[name], expected[name])] == []


def test_a_run_starts_with_the_weights_of_a_checkpoint_and_nothing_else(source, run):
    torch.manual_seed(1)
    run(*LEARNED, *FIRST, "--init_from", SOURCE)
    assert_begins_with(source)
    assert torch.load("first_optimizer.pt", weights_only=True)["state"] == {}
    found = record()
    assert found["init_from"] == {"path": SOURCE, "sha256": sha256(SOURCE)}
    assert (found["total_steps"], found["tokens_seen"]) == (4, 4 * 4 * 32)
    assert found["corpus"]["name"] == "corpus.txt"
    last = weights("runs/tiny/version_0/checkpoints/last.ckpt")
    assert not torch.equal(last["gpt.embedding.weight"], source["gpt.embedding.weight"])
    check(found)


def test_a_run_without_it_is_as_it_was(trained):
    assert record()["init_from"] is None


@pytest.mark.parametrize("form", ["run", "experiment", "nanogpt", "huggingface"])
def test_weights_come_from_runs_nanogpt_and_hugging_face(form, source, run):
    place = {"run": "runs/source/version_0", "experiment": "runs/source"}.get(form, "there")
    file = "runs/source/version_0/checkpoints/best.ckpt"
    if form in ("nanogpt", "huggingface"):
        if form == "huggingface":
            pytest.importorskip("safetensors")
        export_weights(SOURCE, place, form)
        file = {"nanogpt": "there", "huggingface": "there/model.safetensors"}[form]
    run(*LEARNED, *FIRST, "--init_from", place)
    assert_begins_with(source)
    assert record()["init_from"] == {"path": file, "sha256": sha256(file)}


def test_weights_in_several_files_have_one_hash(source, run):
    transformers = pytest.importorskip("transformers")
    export_weights(SOURCE, "whole", "huggingface")
    model = transformers.GPT2LMHeadModel.from_pretrained("whole")
    model.save_pretrained("there", max_shard_size="10KB")
    files = sorted(Path("there").glob("*.safetensors"))
    assert len(files) > 1
    run(*LEARNED, *FIRST, "--init_from", "there")
    assert_begins_with(source)
    assert record()["init_from"] == {"path": "there", "sha256": sha256(*files)}


def test_a_run_of_the_users_is_resumed_and_keeps_what_it_began_with(source, run, capsys):
    command = [*LEARNED, *FIRST, "--init_from", SOURCE, "--ckpt_path", "last"]
    run(*command, "--time_budget.limit", "2 steps")  # there is none yet
    assert_begins_with(source)
    began, after_two = record()["init_from"], weights("runs/tiny/version_0/checkpoints/last.ckpt")
    Path(SOURCE).unlink()
    capsys.readouterr()
    run(*command)
    assert_begins_with(after_two)
    assert record()["total_steps"] == 4
    assert record()["init_from"] == began
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    assert f"init_from is ignored: the run resumes from {last}" in capsys.readouterr().err


def test_its_config_repeats_a_run_and_scores_it(source, run, capsys):
    run(*LEARNED, "--init_from", SOURCE)
    first = weights("runs/tiny/version_0/checkpoints/last.ckpt")
    main(["fit", "--config", "runs/tiny/version_0/config.yaml"])
    again = weights("runs/tiny/version_1/checkpoints/last.ckpt")
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    Path(SOURCE).unlink()
    capsys.readouterr()
    main(["validate", "runs/tiny/version_0"])
    assert f"val_bpb: {record()['val_bpb']:.4f}" in capsys.readouterr().out
    main(["generate", "--ckpt_path", "runs/tiny/version_0", "--max_new_tokens", "2", "--device", "cpu"])
    main(["generate", "--ckpt_path", "last", "--config", "runs/tiny/version_0/config.yaml", "--max_new_tokens", "2"])


@pytest.fixture
def rejection(source, rejected):
    """Runs fit, which must be rejected before it has a folder; returns the line that says why."""

    def rejection(*options):
        line = rejected(*LEARNED, *options, status=4)
        assert not Path("runs/tiny").exists()
        return line.removeprefix("bytelm: error: ")

    return rejection


@pytest.mark.parametrize(
    ("option", "difference"),
    thinned(
        [
            ("--model.gpt.vocab_size=300", "model.gpt.vocab_size: 256 there, 300 here"),
            ("--model.gpt.max_seq_len=64", "model.gpt.max_seq_len: 32 there, 64 here"),
            ("--model.gpt.d_model=32", "model.gpt.d_model: 16 there, 32 here"),
            ("--model.gpt.n_layers=2", "model.gpt.n_layers: 1 there, 2 here"),
            ("--model.gpt.n_heads=4", "model.gpt.n_heads: 2 there, 4 here"),
            ("--model.gpt.d_ff=48", "model.gpt.d_ff: 64 there, 48 here"),
        ],
        3,
        several=True,
    ),
)
def test_a_size_that_differs_is_rejected_with_both_numbers(option, difference, rejection):
    assert rejection("--init_from", SOURCE, option) == (
        f"init_from: '{SOURCE}' is of a network of other sizes; {difference}"
    )


def test_a_length_is_compared_where_weights_do_not_depend_on_it(run, rejected, capsys):
    run("--experiment", "rotary")
    capsys.readouterr()
    line = rejected("--init_from", "runs/rotary", "--model.gpt.max_seq_len=64", status=4)
    assert line.endswith("is of a network of other sizes; model.gpt.max_seq_len: 32 there, 64 here")


def test_other_parts_are_rejected_by_their_key_where_their_weights_differ(rejection, capsys):
    line = rejection("--init_from", SOURCE, "--model.gpt.norm", "RMSNorm")
    assert line.startswith(f"init_from: '{SOURCE}' is of another model; model.gpt.norm")
    line = rejection("--init_from", SOURCE, "--model.gpt.tie_embeddings", "false")
    assert (
        line
        == f"init_from: '{SOURCE}' is of another model; model.gpt.tie_embeddings: True in the checkpoint, False now"
    )


def test_other_parts_with_the_same_weights_are_noted(source, run, capsys):
    run(*LEARNED, *FIRST, "--init_from", SOURCE, "--model.gpt.feedforward", "ReLU")
    assert_begins_with(source)
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "other values" in line]
    assert f"init_from: {SOURCE} was written with other values: model.gpt.feedforward: GELU in the checkpoint" in note
    assert "data" not in note


def test_a_network_of_nanogpt_of_another_size_is_rejected_with_both_numbers(source, rejected):
    export_weights(SOURCE, "ckpt.pt", "nanogpt")
    line = rejected(*LEARNED, "--init_from", "ckpt.pt", "--model.gpt.vocab_size", "300", status=4)
    assert line.endswith(
        "init_from: 'ckpt.pt' is of a network of other sizes; model.gpt.vocab_size: 256 there, 300 here"
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("none.ckpt", "init_from: 'none.ckpt' cannot be read: No such file or directory"),
        ("damaged.ckpt", "init_from: 'damaged.ckpt' is damaged or not a checkpoint"),
        ("runs", "init_from: 'runs' is a folder without checkpoints"),
        ("corpus.txt", "init_from: 'corpus.txt' is damaged or not a checkpoint"),
    ],
)
def test_unreadable_files_are_named(given, reason, rejection):
    content = bytearray(Path(SOURCE).read_bytes())
    content[len(content) // 2] ^= 16
    Path("damaged.ckpt").write_bytes(content)
    assert rejection("--init_from", given).startswith(reason)


def test_files_with_code_are_rejected_and_not_run(rejection):
    class Evil:
        def __reduce__(self):
            return open, ("ran", "w")

    torch.save({**torch.load(SOURCE, weights_only=True), "more": Evil()}, "evil.ckpt")
    assert rejection("--init_from", "evil.ckpt").startswith("init_from: 'evil.ckpt' contains more than tensors")
    assert not Path("ran").exists()


def test_weights_alone_suffice(source, run):
    cli = build(["--config", "tiny.yaml", *LEARNED], run=False)
    assert isinstance(cli.model, LanguageModel)
    torch.save({"state_dict": source}, "weights.ckpt")
    run(*LEARNED, *FIRST, "--init_from", "weights.ckpt")
    assert_begins_with(source)


def test_help_documents_the_key(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "--init_from" in capsys.readouterr().out
