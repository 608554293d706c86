"""What a run prints before and after its training."""

import math
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from token_shards import train_on_tokens
from torch.nn import functional as F

from bytelm import fit
from bytelm.callbacks import BudgetBar, Cosine, Header, Summary, header
from bytelm.callbacks.batch_counts import BatchCounts
from bytelm.callbacks.progress_bar import Lines
from bytelm.callbacks.summary import _doubled
from bytelm.cli import build
from bytelm.data.corpora import Bytes
from bytelm.gpt import GPT
from bytelm.inference.generate import main as generate
from bytelm.metrics import BitsPerByte, NatsPerToken, uniform_score, unigram_score

HEADER = ["model", "data", "budget", "run"]


def said(err):
    """The lines of standard error, by their first word; lines without one belong to the line before."""
    found, name = {}, None
    for line in err.splitlines():
        if match := re.match(r"([a-z]+) +(.+)", line):
            name, line = match.groups()
        found.setdefault(name, []).append(line.strip())
    return found


def test_a_run_says_what_it_does_what_came_of_it_and_what_to_do_next(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/venv/bin/bytelm"])
    cli = run("--samples.max_new_tokens", "4")
    out, err = capsys.readouterr()
    first = said(err)
    n = sum(each.numel() for each in cli.model.parameters())
    assert [*first][:4] == HEADER
    assert first["model"] == [f"{n:,} parameters: 1 layers, d_model 16, vocabulary 256; AdamW"]
    data = cli.datamodule
    assert first["data"] == [f"corpus.txt, {len(data.train_split):,} bytes to train on; 4 rows of 32 a step"]
    assert first["budget"] == ["4 steps; lr Constant"]
    assert first["run"][:1] == ["runs/tiny/version_0 on cpu, 32-true"]
    assert "100% | step 4 | loss" in err

    # The two other scores, from the text itself.
    targets = torch.cat([targets.flatten() for _, targets in data.val_dataloader()])
    frequency = torch.bincount(targets, minlength=256) / len(targets)
    unigram = -frequency[targets].log2().mean()
    assert first["score"] == [
        f"{float(cli.trainer.callback_metrics['val/bpb']):.4f} bits per byte; "
        f"unigram of bytes {unigram:.2f}, uniform 8.00"
    ]
    assert all(re.match(r"\w+: ", line) for line in out.splitlines()), "standard output has only the results"

    commands = [re.split(r"  +", line)[-1] for line in first["next"]]
    commands = [command.removeprefix("python -m ") for command in commands]
    programs = [shlex.split(command)[:2] for command in commands]
    assert programs == [["bytelm", "generate"], ["tensorboard", "--logdir"], ["bytelm", "report"], ["bytelm", "fit"]]
    generate([*shlex.split(commands[0])[2:], "--max_new_tokens", "3"])
    assert commands[2] == "bytelm report runs"
    _, _, config, *options = shlex.split(commands[3])[1:]
    again = run(*options, config=config)
    out, err = capsys.readouterr()
    assert said(err)["resume"][:1] == ["after step 4, with 4 steps left"]
    assert "total_steps: 8\nval" not in out
    assert "total_steps: 8" in out
    assert again.folder.path == Path("runs/tiny/version_0")


def test_tokens_are_compared_with_tokens(run, capsys):
    train_on_tokens()
    cli = run()
    err = capsys.readouterr().err
    (line,) = said(err)["score"]
    loss = float(cli.trainer.callback_metrics["val/loss"])
    assert re.fullmatch(rf"{loss:.4f} nats per token; unigram of tokens 4\.\d\d, uniform {math.log(300):.2f}", line)
    assert "generate" not in err, "the tokenizer is not known"


def test_what_the_user_turns_off_is_not_printed(run, capsys):
    run("--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false")
    out, err = capsys.readouterr()
    assert err == ""
    assert "val_bpb: " in out


def test_a_network_with_own_parts_has_a_command_that_works(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/venv/lib/bytelm/__main__.py"])
    Path("my_norm.py").write_text("from torch import nn\n\nclass Norm(nn.LayerNorm): pass\n")
    run("--model.gpt.norm", "my_norm.Norm")
    command = re.split(r"  +", said(capsys.readouterr().err)["next"][0])[-1]
    assert command.startswith("python -m bytelm generate --ckpt_path runs/tiny/version_0 --config")
    generate([*shlex.split(command)[4:], "--max_new_tokens", "3"])


@pytest.mark.slow
def test_a_run_without_checkpoints_and_logs_has_no_commands_for_them(run, capsys):
    run("--trainer.enable_checkpointing", "false", "--trainer.logger", "false")
    assert [re.split(r"  +", line)[0] for line in said(capsys.readouterr().err)["next"]] == ["compare"]


@pytest.mark.parametrize("in_bytes", [True, False])
def test_the_scores_without_context_are_those_of_the_metrics(in_bytes):
    torch.manual_seed(0)
    targets = torch.randint(0, 7, (200,)) ** 2 % 8
    token_bytes = torch.tensor([0, 1, 3, 2, 1, 4, 1, 1])
    counts = torch.bincount(targets, minlength=8)
    frequencies = (counts / counts.sum()).log().expand(200, 8)
    for logits, score in ((frequencies, unigram_score), (torch.zeros(200, 8), uniform_score)):
        nats = F.cross_entropy(logits, targets, reduction="none")
        metric = BitsPerByte(token_bytes) if in_bytes else NatsPerToken()
        metric.update(nats, targets)
        assert score(counts, token_bytes if in_bytes else None, in_bytes) == pytest.approx(float(metric.compute()))


def test_limits_are_doubled_or_what_is_used_if_that_is_more():
    used = {"seconds": 60.0, "steps": 5, "tokens": 10, "flops": 1e9}
    assert _doubled("90s", used) == "180s"
    assert _doubled(["1m", "300 Mtok", "5 steps"], used) == "[120s, 600 Mtok, 10 steps]"
    # A run whose first step was longer than its limit.
    assert _doubled(["2.5s", "3 steps"], {**used, "seconds": 60.2}) == "[122s, 10 steps]"


def objects(**options):
    gpt = GPT(d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=32)
    data = Bytes("corpus.txt", batch_size=4, seq_len=32, eval_bytes=1024)
    return fit(model=gpt, data=data, limit="3 steps", accelerator="cpu", **options)


def test_objects_have_the_commands_callbacks_and_the_users_own_are_kept(folder, capsys):
    trainer = build(["--config", "tiny.yaml"], run=False).trainer
    command = {type(callback).__name__ for callback in trainer.callbacks}
    made = objects(lr_schedule=Cosine())
    assert {type(callback).__name__ for callback in made.trainer.callbacks} == command - {"RunConfig"}
    first = said(capsys.readouterr().err)
    assert [*first] == [*HEADER, "score", "sample", "next"]
    assert first["budget"] == ["3 steps; lr Cosine"]
    own = [TQDMProgressBar(), ModelSummary()]
    made = objects(callbacks=own, enable_model_summary=False)
    kinds = [type(callback) for callback in made.trainer.callbacks]
    assert (kinds.count(TQDMProgressBar), kinds.count(ModelSummary)) == (1, 1)
    assert not {BudgetBar, Header, Summary} & {*kinds}


def test_lines_are_on_standard_output_in_a_notebook(monkeypatch, capsys):
    stream = type("OutStream", (), {"__module__": "ipykernel.iostream", "isatty": lambda self: False})()
    monkeypatch.setattr(sys, "stderr", stream)
    header.show(["model   small"])
    assert capsys.readouterr().out == "model   small\n"


def test_a_bar_in_a_file_is_lines(capsys):
    lines = Lines(100)
    lines.n = 12.5
    lines.set_description_str("step 3")
    lines.close()
    assert capsys.readouterr().err == " 12% | step 3\n"


@pytest.mark.parametrize(("used_up", "share"), [(True, "100"), (False, " 40")])
def test_the_bar_ends_full_if_the_budget_is_used_up(capsys, used_up, share):
    bar, progress = BudgetBar(), SimpleNamespace(fraction=0.4)
    budget = {"steps": 4, "training_seconds": 2.0, "counts": BatchCounts(), "progress": progress, "is_used_up": used_up}
    bar._budget, bar._bar, bar._status, bar._first = SimpleNamespace(**budget), Lines(100), "step 1", (0, 0, 0.0)
    bar.on_fit_end(None, None)  # a validation has ended the run at a step that was not shown
    assert capsys.readouterr().err.strip("\n") == f"{share}% | step 4 | 2.0 steps/s | done"
