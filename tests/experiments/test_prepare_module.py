"""The module `prepare` of submitted programs: the challenge's interface, and the same figures as its protocol."""

import builtins
import contextlib
import importlib.util
import inspect
import io
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from reference import CORPUS, harness_module, needs_reference

pytest.importorskip("fastapi")  # the service's package

from bytelm.cli import build
from bytelm.data.bytes import read_bytes
from bytelm.data.rows import EvalBatches
from bytelm.experiments.service.program import ON_PATH
from bytelm.metrics import BitsPerByte


def load(name, **modules):
    """A module of the folder `on_path`, with the modules that it imports."""
    spec = importlib.util.spec_from_file_location(name, ON_PATH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for imported, value in modules.items():
            patch.setitem(__import__("sys").modules, imported, value)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def text(tmp_path, monkeypatch):
    """The splits of a part of the corpus; the harness reads the same part."""
    whole = CORPUS.read_bytes()[:60_000] if CORPUS.exists() else bytes(range(1, 251)) * 240
    (tmp_path / "corpus.txt").write_bytes(whole)
    cut = int(len(whole) * 0.9)
    (tmp_path / "train.bin").write_bytes(whole[:cut])
    (tmp_path / "val.bin").write_bytes(whole[cut:])
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HARNESS_CORPUS", str(tmp_path / "corpus.txt"))
    return whole


def test_it_is_on_the_path_of_programs_alone():
    found = importlib.util.find_spec(
        "prepare"
    )  # other tests may have put a reference's module of this name on the path
    assert found is None or "on_path" not in found.origin


def test_it_has_the_challenges_interface(text):
    prepare = load("prepare")
    assert (prepare.MAX_SEQ_LEN, prepare.VOCAB_SIZE, prepare.TIME_BUDGET) == (256, 256, 180)
    assert isinstance(prepare.TIME_BUDGET, int)
    assert (prepare.EVAL_TOKENS, prepare.BOS_TOKEN) == (131_072, 0)
    assert list(inspect.signature(prepare.make_dataloader).parameters) == ["B", "T", "split", "device"]
    assert list(inspect.signature(prepare.evaluate_bpb).parameters) == ["model", "B", "device"]
    tokenizer = prepare.ByteTokenizer()
    assert tokenizer.encode("é\n") == [195, 169, 10]
    assert tokenizer.decode([195, 169, 10, 255]) == "é\n\ufffd"
    assert (tokenizer.get_vocab_size(), tokenizer.get_bos_token_id()) == (256, 0)
    stats = prepare.get_data_stats()
    assert (stats["train_tokens"], stats["val_tokens"], stats["eval_tokens"]) == (54_000, 6_000, 131_072)
    with pytest.raises(ValueError, match="split: 'test' cannot be used; accepted: train, val"):
        next(prepare.make_dataloader(2, 8, "test"))


@needs_reference
@pytest.mark.parametrize(("rows", "split"), [(4, "train"), (7, "val"), (300, "train")])
def test_its_batches_are_the_challenges_also_beyond_the_end_of_the_text(text, rows, split):
    ours = load("prepare").make_dataloader(rows, 256, split)
    theirs = harness_module("prepare").make_dataloader(rows, 256, split)
    for mine, other in itertools.islice(zip(ours, theirs, strict=True), 6):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, other, strict=True))


class Bigrams(torch.nn.Module):
    """Logits that depend on the last byte."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(256, 256)

    def forward(self, x, targets):
        return torch.nn.functional.cross_entropy(self.table(x).flatten(0, 1), targets.flatten())


def test_its_score_is_bytelms(text, monkeypatch):
    monkeypatch.setenv("EVAL_TOKENS", "4096")
    torch.manual_seed(0)
    model, metric = Bigrams(), BitsPerByte()
    val = read_bytes(text[int(len(text) * 0.9) :])[:4096]
    for x, y in EvalBatches(val, batch_size=4, seq_len=256):
        nats = torch.nn.functional.cross_entropy(model.table(x).transpose(1, 2), y, reduction="none")
        metric.update(nats, y)
    assert load("prepare").evaluate_bpb(model, 4) == pytest.approx(metric.compute().item(), rel=1e-6)
    assert model.training


class Clock:
    """A module `time` in which a second passes between two readings: a budget of n seconds is n - 1 steps."""

    def __init__(self):
        self.now = 0

    def time(self):
        self.now += 1
        return float(self.now)


def executed(source, prepare):
    """Executes a program with a module `prepare` and a Clock; returns what it prints."""

    def imported(name, *options):
        replaced = {"prepare": prepare, "time": SimpleNamespace(time=Clock().time)}
        return replaced[name] if name in replaced else builtins.__import__(name, *options)

    names = {"__name__": "__main__", "__builtins__": {**vars(builtins), "__import__": imported}}
    out, log = io.StringIO(), io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
        exec(compile(source, "train.py", "exec"), names)
    return json.loads(out.getvalue())


@needs_reference
def test_the_winners_program_gets_the_harness_figures_to_the_last_digit(text, monkeypatch):
    source = harness_module("run_challenge_script").challenge_script()
    results = []
    for prepare in (load("prepare"), harness_module("prepare")):
        for name, value in {"TIME_BUDGET": 5.0, "EVAL_TOKENS": 8192}.items():
            monkeypatch.setattr(prepare, name, value)
        results.append(executed(source, prepare))
    assert results[0] == results[1]
    assert results[0]["total_steps"] == 4
    assert 0 < results[0]["val_bpb"] < 8


def test_the_baseline_program_has_the_network_of_the_baseline_config(text, monkeypatch, tmp_path):
    (tmp_path / "corpus.txt").rename(tmp_path / "shakespeare.txt")
    monkeypatch.setenv("BYTELM_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bytelm"])
    ours = build(["--config", "configs/autoresearch/00-baseline.yaml"], run=False).model.gpt
    prepare = load("prepare")
    program = load("baseline", prepare=prepare)
    theirs = program.GPT()
    names = {
        **{"embedding.weight": "tokens.weight", "position.weight": "positions.weight", "up": "0", "down": "3"},
    }

    def renamed(name):
        return names.get(name) or ".".join(names.get(part, part) for part in name.split("."))

    assert {renamed(name): p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in theirs.named_parameters()
    }
    theirs.load_state_dict({renamed(name): p for name, p in ours.named_parameters()})
    x = torch.randint(256, (2, 256))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours.eval()(x), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(prepare, "EVAL_TOKENS", 4096)
    monkeypatch.setattr(prepare, "TIME_BUDGET", 4.0)
    result = executed((ON_PATH / "baseline.py").read_text(), prepare)
    assert (result["total_steps"], result["num_params_M"]) == (3, 0.8919)
