"""The kernels of NGramMemory for the CPU compute the same as its operators."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bytelm.kernels import cpu, ngram_memory
from bytelm.parts import ngram_counts
from bytelm.parts.memory import NGramMemory
from bytelm.parts.ngram_counts import ContextKind, NGramCounts

TEXT = Path(__file__).read_bytes() * 3
T = 64

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the kernels are built by g++"),
    pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux"),
]


@pytest.fixture(scope="module")
def memory():
    torch.manual_seed(0)
    made = NGramMemory(256, 16, orders=[1, 2, 4], words=[1, 2, 3], classes=[2, 3], cache=[1, 3], n_symbols=50)
    text = torch.tensor(list(TEXT), dtype=torch.uint8)
    made.fill(text, (torch.arange(len(text)) // T % 3).to(torch.uint8), T)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


def rows(n=5):
    starts = torch.arange(n)[:, None] * 1_000 + torch.arange(T)
    inputs = torch.tensor(list(TEXT))[starts]
    inputs[:, 0] = 0
    return inputs


def by_operators(monkeypatch):
    monkeypatch.setattr(ngram_memory, "is_available", lambda device, dtype: False)


@pytest.mark.parametrize("fold", [None, 1])
@pytest.mark.parametrize("start", [0, 40])
def test_recall(memory, fold, start, monkeypatch):
    memory.hold_out(fold)
    assert ngram_memory.is_available(torch.device("cpu"), torch.float32)
    own = memory.recall(rows(), start)
    by_operators(monkeypatch)
    expected = memory.recall(rows(), start)
    torch.testing.assert_close(own.values, expected.values, rtol=0, atol=1e-5)


def test_recall_before_the_text_is_counted(monkeypatch):
    memory = NGramMemory(256, 16, n_symbols=50)
    own = memory.recall(rows())
    by_operators(monkeypatch)
    torch.testing.assert_close(own.values, memory.recall(rows()).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mix_and_its_gradients(memory, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(1)
    x, logits = torch.randn(5, T, 16), torch.randn(5, T, 256)
    weights = torch.randn(5, T, 256)

    def computed():
        leaves = [each.clone().requires_grad_() for each in (x, logits)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = memory.mix(leaves[1], leaves[0], memory.recall(rows()))
        return mixed, *torch.autograd.grad(
            (mixed * weights).sum(), [*leaves, memory.gate.weight, memory.gate_counts.bias]
        )

    own = computed()
    by_operators(monkeypatch)
    # In bf16 the operators round every term of the sum, the kernel only its inputs.
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for one, other in zip(own, computed(), strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("n_symbols", [1, 256])
def test_mix_where_no_token_or_all_tokens_share_a_symbol(n_symbols):
    torch.manual_seed(1)
    logits, gates = torch.randn(2, 3, 256), torch.randn(2, 3, 1, requires_grad=True)
    evidence, symbols = torch.randn(2, 3, n_symbols), torch.arange(256).clamp(max=n_symbols - 1)
    mixed = ngram_memory.mix(logits, gates, evidence, symbols, n_symbols)
    torch.testing.assert_close(mixed, logits + gates * evidence[..., symbols])
    weights = torch.randn(2, 3, 256)
    (own,) = torch.autograd.grad((mixed * weights).sum(), gates)
    torch.testing.assert_close(own, (weights * evidence[..., symbols]).sum(dim=-1, keepdim=True))


def test_text_is_counted_the_same_on_several_threads(memory, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    memory.hold_out(None)
    other = NGramMemory(256, 16, orders=[1, 2, 4], words=[1, 2, 3], classes=[2, 3], n_symbols=50)
    text = torch.tensor(list(TEXT), dtype=torch.uint8)
    other.fill(text, (torch.arange(len(text)) // T % 3).to(torch.uint8), T)
    other.hold_out(None)
    for one, two in zip(memory._tables, other._tables, strict=True):
        for name in ("_keys", "_tokens", "_counts", "_starts"):
            assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_kernel_is_built_once_for_a_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu.library.cache_clear()
    assert cpu.library("ngram_memory") is not None
    (built,) = (tmp_path / "bytelm/kernels").iterdir()
    monkeypatch.setattr(cpu, "_build", lambda *arguments: pytest.fail("it was built before"))
    cpu.library.cache_clear()
    assert cpu.library("ngram_memory") is not None
    monkeypatch.setattr(cpu, "_processor", lambda: b"another one")
    monkeypatch.setattr(cpu, "_build", fails)
    cpu.library.cache_clear()
    assert cpu.library("ngram_memory") is None, "another processor needs another build"
    assert [*(tmp_path / "bytelm/kernels").iterdir()] == [built], "nothing is left of a failed build"
    cpu.library.cache_clear()


def fails(*arguments):
    raise OSError


def test_without_a_compiler_there_is_no_kernel_and_one_note(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    cpu.library.cache_clear()
    cpu._note.cache_clear()
    assert not ngram_memory.is_available(torch.device("cpu"), torch.float32)
    assert cpu.library("relu_squared") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bytelm: note: no C++ compiler was found (g++, clang++, c++); PyTorch's operators replace")
    cpu.library.cache_clear()


@pytest.mark.parametrize("kind", range(8))
@pytest.mark.parametrize("max_pairs", [None, 1500])
def test_counts(memory, kind, max_pairs, monkeypatch):
    monkeypatch.setattr(ngram_counts, "PIECE", 5_000)
    monkeypatch.setattr(ngram_counts, "RANGE", 3_000)
    text = torch.tensor(list(TEXT), dtype=torch.uint8)
    of = memory.kinds[kind], max_pairs, memory.classes
    folds = (torch.arange(len(text)) // 2_000 % 3).to(torch.uint8)
    own = NGramCounts.of_index(torch.device("cpu"), **ngram_memory.count(text, folds, *of))
    expected = NGramCounts(text, folds, of[0], torch.device("cpu"), *of[1:])
    own.hold_out(1)
    expected.hold_out(1)
    for name, value in vars(expected).items():
        found = getattr(own, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_many_equal_pairs_and_wide_steps_are_counted():
    text = torch.tensor([*b"ab" * 2_000, *range(256), *range(256)] * 2, dtype=torch.uint8)
    of = text, (torch.arange(len(text)) < 4_500).to(torch.uint8), ContextKind(2)
    own = NGramCounts.of_index(torch.device("cpu"), **ngram_memory.count(*of, None, None))
    expected = NGramCounts(*of, torch.device("cpu"))
    for name, value in vars(expected).items():
        found = getattr(own, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_shares(memory, monkeypatch):
    memory.hold_out(1)
    own = memory._shares(rows(6))
    by_operators(monkeypatch)
    for found, expected in zip(own, memory._shares(rows(6)), strict=True):
        torch.testing.assert_close(found, expected)
