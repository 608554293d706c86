"""A tiny experiment that whole runs are tested on: it takes milliseconds a step, and its corpus is made here."""

import random
import sys

import pytest

from bytelm.cli import build
from bytelm.errors import ConfigError
from bytelm.program import main

CONFIG = """
model:
  gpt: {d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 32}
  optimizer: {class_path: AdamW, init_args: {lr: 3e-3}}
data:
  class_path: Bytes
  init_args: {path: corpus.txt, batch_size: 4, seq_len: 32, eval_bytes: 1024}
trainer: {accelerator: cpu, devices: 1, gradient_clip_val: 1.0, log_every_n_steps: 1}
time_budget: {limit: 4 steps}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with corpus.txt and tiny.yaml."""
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n"]
    rng = random.Random(0)
    (tmp_path / "corpus.txt").write_text(" ".join(rng.choice(words) for _ in range(4000)))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bytelm"])  # LightningCLI warns where there are both sys.argv and args
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]  # a user's file of the same name in another test is another module


@pytest.fixture
def run(folder):
    """Runs a subcommand on tiny.yaml with further options, in this process; returns the finished CLI."""

    def run(*options, subcommand="fit", config="tiny.yaml"):
        return build([subcommand, "--config", config, *options])

    return run


@pytest.fixture
def refused(folder, capsys):
    """Runs main() on options that must be refused with an exit status; returns the one line that says why."""

    def refused(*options, status=ConfigError.exit_status):
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", "tiny.yaml", *options])
        assert ended.value.code == status
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    return refused
