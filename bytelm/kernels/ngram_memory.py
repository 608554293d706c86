"""NGramMemory's recall and mix on the CPU (ngram_memory.cpp)."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bytelm.kernels.cpu import DTYPES, call, library
from bytelm.parts.ngram_counts import FOLDED, IN_WORD, INVERSE, ContextKind, NGramCounts, WordClasses

_NAME = "ngram_memory"


class _Kind(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "words", "classes")),
        *((name, ctypes.c_void_p) for name in ("starts", "keys", "tokens", "counts")),
        *((name, ctypes.c_int64) for name in ("bucket_shift", "key_shift")),
    )


class _Memory(ctypes.Structure):
    _fields_ = (
        ("kinds", ctypes.POINTER(_Kind)),
        ("n_kinds", ctypes.c_int64),
        ("n_cache", ctypes.c_int64),
        ("backoff", ctypes.c_void_p),
        ("symbols", ctypes.c_void_p),
        ("n_symbols", ctypes.c_int64),
        ("level", ctypes.c_void_p),
        ("n_levels", ctypes.c_int64),
        ("folded", ctypes.c_void_p),
        ("in_word", ctypes.c_void_p),
        ("inverse", ctypes.c_int64),
        ("class_keys", ctypes.c_void_p),
        ("class_of_key", ctypes.c_void_p),
        ("n_keys", ctypes.c_int64),
    )


class _Mixing(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "n_threads", "n_levels", "n_symbols", "width", "n_tokens")),
        ("symbols", ctypes.c_void_p),
    )


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for a device and evidence of a type, and they can be built here."""
    return device.type == "cpu" and dtype in DTYPES and library(_NAME) is not None


def recall(
    tokens: Tensor,
    start: int,
    kinds: Sequence[ContextKind],
    cache: Sequence[ContextKind],
    tables: Sequence[NGramCounts] | None,
    backoff: Tensor,
    symbols: Tensor,
    n_symbols: int,
    levels: Sequence[int],
    dtype: torch.dtype,
    classes: WordClasses | None = None,
) -> Tensor:
    """The evidence of NGramMemory for the positions of rows.

    Args:
        tokens: int64, (B, S), on the CPU.
        start: First position.
        kinds: Contexts in the text.
        cache: Contexts in the row.
        tables: Counts of `kinds`; None: not counted yet.
        backoff: Weights of interpolation, (n_kinds, n_buckets), for `kinds` and `cache`.
        symbols: Symbol of each token, int64, (vocab_size,).
        n_symbols: Number of symbols.
        levels: The kinds whose predictions are returned, ascending.
        dtype: Of the result, one of DTYPES.
        classes: Classes of words, for kinds of contexts that consist of them.

    Returns:
        (B, T, n_levels n_symbols + 2 n_kinds), with T = S - start: log-probabilities, then counts.
    """
    all_kinds = [*kinds, *cache]
    made = (_Kind * len(all_kinds))()
    for i, kind in enumerate(all_kinds):
        made[i].n, made[i].words, made[i].classes = kind.n, kind.words, kind.classes
        if tables is not None and i < len(kinds):
            table = tables[i]
            made[i].starts, made[i].keys = table._starts.data_ptr(), table._keys.data_ptr()
            made[i].tokens, made[i].counts = table._tokens.data_ptr(), table._counts.data_ptr()
            made[i].bucket_shift, made[i].key_shift = table._bucket_shift, table._key_shift
    n_rows, seq_len = tokens.shape
    tokens, symbols, backoff = tokens.contiguous(), symbols.contiguous(), backoff.float().contiguous()
    level = torch.tensor([levels.index(i) if i in levels else -1 for i in range(len(all_kinds))])
    memory = _Memory(
        kinds=made,
        n_kinds=len(all_kinds),
        n_cache=len(cache),
        backoff=backoff.data_ptr(),
        symbols=symbols.data_ptr(),
        n_symbols=n_symbols,
        level=level.data_ptr(),
        n_levels=len(levels),
        folded=FOLDED.data_ptr(),
        in_word=IN_WORD.data_ptr(),
        inverse=ctypes.c_int64(INVERSE).value,
        class_keys=None if classes is None else classes[0].data_ptr(),
        class_of_key=None if classes is None else classes[1].data_ptr(),
        n_keys=0 if classes is None else len(classes[0]),
    )
    width = len(levels) * n_symbols + 2 * len(all_kinds)
    evidence = torch.empty(n_rows, seq_len - start, width, dtype=dtype)
    call(_NAME, "recall", dtype, memory, tokens, n_rows, seq_len, start, torch.get_num_threads(), evidence)
    return evidence


def mix(logits: Tensor, gates: Tensor, evidence: Tensor, symbols: Tensor, n_symbols: int) -> Tensor:
    """Adds predictions to logits: a sum of log-probabilities, each times its gate.

    Args:
        logits: (B, T, vocab_size).
        gates: (B, T, n_levels).
        evidence: Of `recall`, (B, T, width); no gradient is computed for it.
        symbols: Symbol of each token, int64, (vocab_size,).
        n_symbols: Number of symbols.

    Returns:
        float32, (B, T, vocab_size).
    """
    mixed: Tensor = _Mix.apply(logits.to(evidence.dtype), gates.float(), evidence, symbols, n_symbols)
    return mixed


class _Mix(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, gates: Tensor, evidence: Tensor, symbols: Tensor, n_symbols: int) -> Tensor:
        logits, gates, symbols = logits.contiguous(), gates.contiguous(), symbols.contiguous()
        ctx.save_for_backward(evidence, symbols)
        ctx.sizes = {
            "n": gates.shape[:-1].numel(),
            "n_threads": torch.get_num_threads(),
            "n_levels": gates.shape[-1],
            "n_symbols": n_symbols,
            "width": evidence.shape[-1],
            "n_tokens": logits.shape[-1],
        }
        mixed = torch.empty_like(logits, dtype=torch.float32)
        options = _Mixing(symbols=symbols.data_ptr(), **ctx.sizes)
        call(_NAME, "mix", evidence.dtype, options, logits, gates, evidence, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        evidence, symbols = ctx.saved_tensors
        of_logits = torch.empty_like(gradient, dtype=evidence.dtype)
        of_gates = torch.empty(*gradient.shape[:-1], ctx.sizes["n_levels"])
        options = _Mixing(symbols=symbols.data_ptr(), **ctx.sizes)
        call(_NAME, "mix_backward", evidence.dtype, options, gradient.contiguous(), evidence, of_logits, of_gates)
        return of_logits, of_gates, None, None, None
