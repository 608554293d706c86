"""NGramMemory's recall and mix on the CPU (ngram_memory.cpp)."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bytelm.kernels.cpu import DTYPES, call, library
from bytelm.parts import ngram_counts
from bytelm.parts.ngram_counts import FOLDED, IN_WORD, INVERSE, MAX_FOLDS, ContextKind, NGramCounts, WordClasses

_NAME = "ngram_memory"
_BYTES = 256


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
    tokens, backoff = tokens.contiguous(), backoff.float().contiguous()
    level = torch.tensor([levels.index(i) if i in levels else -1 for i in range(len(kinds) + len(cache))])
    memory, _kept = _memory(kinds, cache, tables, symbols, n_symbols, classes, backoff, level, len(levels))
    n_rows, seq_len = tokens.shape
    width = len(levels) * n_symbols + 2 * len(level)
    evidence = torch.empty(n_rows, seq_len - start, width, dtype=dtype)
    call(_NAME, "recall", dtype, memory, tokens, n_rows, seq_len, start, torch.get_num_threads(), evidence)
    return evidence


def shares(
    tokens: Tensor,
    targets: Tensor,
    kinds: Sequence[ContextKind],
    cache: Sequence[ContextKind],
    tables: Sequence[NGramCounts] | None,
    symbols: Tensor,
    n_symbols: int,
    classes: WordClasses | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the counts say about known targets.

    Args:
        tokens: int64, (B, T), on the CPU.
        targets: int64, (B, T).
        kinds: As for `recall`.
        cache: As for `recall`.
        tables: As for `recall`.
        symbols: As for `recall`.
        n_symbols: As for `recall`.
        classes: As for `recall`.

    Returns:
        Of each context: the share of its counts that the target has, their sum, and the number of different symbols
        that followed, each (n_kinds, B T).
    """
    tokens, targets = tokens.contiguous(), targets.contiguous()
    n_kinds = len(kinds) + len(cache)
    memory, _kept = _memory(kinds, cache, tables, symbols, n_symbols, classes)
    found = torch.empty(3, n_kinds, tokens.numel())
    call(_NAME, "shares", torch.float32, memory, tokens, targets, *tokens.shape, torch.get_num_threads(), *found)
    share, total, distinct = found
    return share, total, distinct


def count(
    text: Tensor,
    folds: Tensor,
    kind: ContextKind,
    max_pairs: int | None,
    classes: WordClasses | None,
) -> dict[str, Any]:
    """The index of NGramCounts, made by one thread.

    Args:
        text: Tokens, uint8, (n,).
        folds: Fold of each token, uint8, (n,).
        kind: Kind of the contexts.
        max_pairs: Number of pairs after which no further range of contexts is counted.
        classes: Classes of words, for contexts of classes.

    Returns:
        `bits` of a bucket's number, `n_stops` of each fold, and tensors: `starts`, `keys`, `tokens`, `counts`, `steps`
        and `in_fold`.
    """
    text, folds = text.contiguous(), folds.contiguous()
    memory, _kept = _memory([kind], [], None, torch.arange(_BYTES), _BYTES, classes)
    sizes, handle = torch.empty(2 + MAX_FOLDS, dtype=torch.int64), torch.empty(1, dtype=torch.int64)
    most = len(text) + 1 if max_pairs is None else max_pairs
    of_text = text, folds, len(text), ngram_counts.PIECE, ngram_counts.RANGE
    call(_NAME, "count_begin", torch.float32, memory, *of_text, most, sizes, handle)
    n_entries, bits, *n_stops = sizes.tolist()
    index = {
        "starts": torch.zeros((1 << bits) + 1, dtype=torch.int32),
        "keys": torch.empty(n_entries, dtype=torch.int16),
        "tokens": torch.empty(n_entries, dtype=torch.uint8),
        "counts": torch.empty(n_entries),
        "steps": torch.empty(sum(n_stops), dtype=torch.uint8),
        "in_fold": torch.empty(sum(n_stops), dtype=torch.uint8),
    }
    call(_NAME, "count_end", torch.float32, handle, *index.values())
    return {"bits": bits, "n_stops": n_stops, **index}


def _memory(
    kinds: Sequence[ContextKind],
    cache: Sequence[ContextKind],
    tables: Sequence[NGramCounts] | None,
    symbols: Tensor,
    n_symbols: int,
    classes: WordClasses | None,
    backoff: Tensor | None = None,
    level: Tensor | None = None,
    n_levels: int = 0,
) -> tuple[_Memory, list[Any]]:
    """The structure that the kernels read, and what it points to."""
    all_kinds = [*kinds, *cache]
    made = (_Kind * len(all_kinds))()
    for i, kind in enumerate(all_kinds):
        made[i].n, made[i].words, made[i].classes = kind.n, kind.words, kind.classes
        if tables is not None and i < len(kinds):
            table = tables[i]
            made[i].starts, made[i].keys = table._starts.data_ptr(), table._keys.data_ptr()
            made[i].tokens, made[i].counts = table._tokens.data_ptr(), table._counts.data_ptr()
            made[i].bucket_shift, made[i].key_shift = table._bucket_shift, table._key_shift
    symbols = torch.nn.functional.pad(symbols, (0, _BYTES - len(symbols)))
    memory = _Memory(
        kinds=made,
        n_kinds=len(all_kinds),
        n_cache=len(cache),
        backoff=None if backoff is None else backoff.data_ptr(),
        symbols=symbols.data_ptr(),
        n_symbols=n_symbols,
        level=None if level is None else level.data_ptr(),
        n_levels=n_levels,
        folded=FOLDED.data_ptr(),
        in_word=IN_WORD.data_ptr(),
        inverse=ctypes.c_int64(INVERSE).value,
        class_keys=None if classes is None else classes[0].data_ptr(),
        class_of_key=None if classes is None else classes[1].data_ptr(),
        n_keys=0 if classes is None else len(classes[0]),
    )
    return memory, [made, tables, symbols, classes, backoff, level]


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
