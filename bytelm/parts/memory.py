"""Memories: counts of the tokens that followed a context elsewhere in the text, used beside the weights.

A memory recalls evidence for each position from the tokens alone; the evidence is added to the embeddings, and mixed
into the logits. It learns by counting, in seconds, what weights would take many steps to learn.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bytelm.config.values import NonNegativeInt, PositiveInt
from bytelm.errors import ConfigError
from bytelm.parts.contract import Memory, Run
from bytelm.parts.ngram_counts import ContextKind, NGramCounts, contexts
from bytelm.system import compiler
from bytelm.system.memory import release_memory


@dataclass
class Evidence:
    """The content of a memory for each position.

    Attributes:
        log_probs: Predictions of the next token, in nats, from the least to the most specific, (B, T, L, n_symbols).
        counts: How often each kind of context was seen and how many tokens followed it, logarithms, (B, T, 2 n_kinds).
        rows: Rows of the gates' tables, int64, (B, T, n_tables).
        seen: How many kinds of context were seen, int64, (B, T).
    """

    log_probs: Tensor
    counts: Tensor
    rows: Tensor
    seen: Tensor

    def to(self, dtype: torch.dtype) -> "Evidence":
        """The same in another precision."""
        return Evidence(self.log_probs.to(dtype), self.counts.to(dtype), self.rows, self.seen)


class NoMemory(Memory):
    """None.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
    """

    changes_logits = False

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()

    def recall(self, tokens: Tensor, start: int = 0) -> None:
        return None

    def embed(self, x: Tensor, evidence: None) -> Tensor:
        return x

    def mix(self, logits: Tensor, x: Tensor, evidence: None) -> Tensor:
        return logits


class NGramMemory(Memory):
    """An n-gram model of the training text, and one of the row so far, that the network consults.

    Predictions are interpolated from context to context, in the order of the options below:
    p_k = (1 - b_k) c_k / N_k + b_k p_{k-1}, with c_k the counts of what followed context k, N_k their sum, and weights
    b_k by context and counts, found by expectation maximisation on text that was held out (Jelinek and Mercer 1980;
    Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128). After the contexts in the training text come those
    in the row itself (a cache model: Kuhn and De Mori 1990, https://doi.org/10.1109/34.56193). The network gets every
    second prediction, the last ones, and the counts as input; the logits get these predictions' log-probabilities times
    gates that its output sets (Mahoney 2005, "Adaptive weighing of context models", mixes so in PAQ).

    While the network trains on a fold of the text, that fold is held out of the counts (ngram_counts.py). For
    bytes: the work grows with the number of symbols, so the rare bytes share one, and each of them gets that one's
    log-probability.

    Args:
        vocab_size: Number of tokens, at most 256.
        d_model: Width of the residual stream.
        orders: Contexts in the training text: the last n tokens, for each n, ascending.
        words: Contexts in the training text: the current word's beginning and the n - 1 words before it, ascending.
        cache: Contexts in the row itself: the last n tokens, for each n, ascending.
        n_symbols: The n_symbols - 1 most frequent tokens of the text have a symbol each, all others share one.
        gate_tables: Tables that give the gates further terms, as the mixers of PAQ choose weights by small contexts.
            `counts`: one for each kind of context, by its counts, with the groups that have a weight b_k each. `match`:
            one by the last token and the number of kinds of context that were seen.
        mix_probabilities: Whether the logits also get the probabilities, times gates.
        mixing_units: Hidden units of a second mixing network, as in PAQ8: each unit combines a token's predictions, and
            its output is added to the token's logit times a gate that the network sets. 0: none.
        calibrate: Whether the last step maps each token's log-probability by a piecewise linear function, which is
            learned, for each number of kinds of context that were seen: an APM stage, as in PAQ (Mahoney 2005).

    Raises:
        ConfigError: A value that is not accepted; the message names it.
    """

    optimizer_groups: ClassVar = {"reader": "hidden"}
    backoff: Tensor
    symbols: Tensor

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        orders: list[PositiveInt] = [3, 4, 5, 6, 8],  # noqa: B006 (shown by --help, never changed)
        words: list[PositiveInt] = [1, 2, 3],  # noqa: B006
        cache: list[PositiveInt] = [3],  # noqa: B006
        n_symbols: PositiveInt = 128,
        gate_tables: list[Literal["counts", "match"]] = [],  # noqa: B006
        mix_probabilities: bool = False,
        mixing_units: NonNegativeInt = 0,
        calibrate: bool = False,
    ) -> None:
        super().__init__()
        if vocab_size > 256:
            raise ConfigError("vocab_size", vocab_size, "accepted by NGramMemory: up to 256, as for bytes")
        for name, values in (("orders", orders), ("words", words), ("cache", cache)):
            if list(values) != sorted(set(values)) or (name == "orders" and not values):
                raise ConfigError(name, values, "accepted: numbers in ascending order, each once, such as [2, 3, 4]")
        self.n_symbols = min(n_symbols, vocab_size)
        self.kinds = [*(ContextKind(n) for n in orders), *(ContextKind(n, words=True) for n in words)]
        self.cache = [ContextKind(n) for n in cache]
        n_kinds = len(self.kinds) + len(self.cache)
        # Every second prediction is as good as all: neighbours say nearly the same.
        self.levels = sorted({*range(1, n_kinds, 2), len(self.kinds) - 1, n_kinds - 1})
        self.reader = nn.Linear(len(self.levels) * self.n_symbols + 2 * n_kinds, d_model, bias=False)
        self.gate = nn.Linear(d_model, len(self.levels), bias=False)
        self.gate_counts = nn.Linear(2 * n_kinds, len(self.levels))
        self._tables_of = tuple(dict.fromkeys(gate_tables))
        sizes = {"counts": n_kinds * _N_ROWS, "match": vocab_size * (n_kinds + 1)}
        if gate_tables:
            self.gate_tables = nn.Embedding(sum(sizes[name] for name in self._tables_of), len(self.levels))
        if mix_probabilities:
            self.gate_probabilities = nn.Linear(d_model, len(self.levels))
        if mixing_units:
            self.units = nn.Linear(len(self.levels), mixing_units)
            self.gate_units = nn.Linear(d_model + 2 * n_kinds, mixing_units)
        if calibrate:
            self.calibration = nn.Embedding(n_kinds + 1, _N_KNOTS)
        self.vocab_size = vocab_size
        self.register_buffer("backoff", torch.full((n_kinds, _N_BUCKETS), 0.5))
        self.register_buffer("symbols", torch.arange(vocab_size).clamp(max=self.n_symbols - 1))
        self._knows_folds = False  # whether the text was counted since the state was last loaded
        self._text: Tensor | None = None
        self._tables: list[NGramCounts] | None = None

    def check(self, run: Run) -> None:
        name = type(self).__name__
        if run.data_order != "folds":
            accepted = f"accepted with {name}: folds; in other orders it recalls the row that it trains on"
            raise ConfigError("data.order", run.data_order, accepted)
        if run.strategy == "fsdp":
            raise ConfigError("trainer.strategy", "fsdp", f"accepted with {name}: auto, ddp")

    def after_init(self) -> None:
        """Starts as the n-gram model: the last prediction's gate is 1, all others are 0."""
        for name, p in self.named_parameters():
            if name.startswith(("gate", "calibration")):
                nn.init.zeros_(p)
        with torch.no_grad():
            self.gate_counts.bias[-1] = 1.0

    def memory_bytes(self, data: Any) -> int:
        """Memory that filling takes, in bytes, as measured on English prose; other texts have other contexts."""
        return int(len(data.train_split) * (_BYTES_TO_FILL + _BYTES_OF_TABLE * len(self.kinds)))

    # The budget's clock is running: what a memory learns, it learns in training time.
    def prepare_in_pieces(self, data: Any) -> Iterator[None]:
        release_memory()
        yield
        yield from self._fill(data.train_split, data.folds(), data.seq_len)

    def on_train_batch_start(self, data: Any) -> None:
        if not self._knows_folds:  # its state was loaded since, as by a rewind
            release_memory()
            self.fill(data.train_split, data.folds(), data.seq_len)
        self.hold_out(data.fold)

    def on_evaluation_start(self) -> None:
        self.hold_out(None)

    def fill(self, text: Tensor, folds: Tensor, seq_len: int) -> None:
        """Counts a text, and finds the weights of interpolation on a sample of one of its folds.

        Args:
            text: Tokens, uint8, (n,).
            folds: Fold of each token, uint8, (n,).
            seq_len: Length of the rows that the network will see.
        """
        for _ in self._fill(text, folds, seq_len):
            pass

    def _fill(self, text: Tensor, folds: Tensor, seq_len: int) -> Iterator[None]:
        """Fills the memory, in pieces of some ten milliseconds."""
        device = self.backoff.device
        self._tables = None  # those of a checkpoint, before there are others
        self._text = text.clone()  # a view would take the storage behind it, other splits too, into checkpoints
        self.backoff.fill_(0.5)
        frequency = torch.bincount(text, minlength=len(self.symbols)).argsort(descending=True, stable=True)
        self.symbols[frequency] = torch.arange(len(self.symbols), device=device).clamp(max=self.n_symbols - 1)
        for table in (yield from self._count(text, folds)):
            table.hold_out(0)
            yield
        starts = (folds[::seq_len] == 0).nonzero()[:, 0] * seq_len
        starts = starts[starts + seq_len <= len(text)]
        starts = starts[:: max(1, len(starts) // _SAMPLED_ROWS)]
        yield from self._interpolate([text[start : start + seq_len].to(device).long() for start in starts])
        self._knows_folds = True

    def hold_out(self, fold: int | None) -> None:
        """Takes one fold of the text out of the counts; None: counts all of it."""
        if self._tables is None and self._text is not None:  # from a checkpoint, which has the text alone
            for _ in self._count(self._text, torch.zeros_like(self._text)):
                pass
        for table in self._tables or []:
            table.hold_out(fold)

    def _count(self, text: Tensor, folds: Tensor) -> Generator[None, None, list[NGramCounts]]:
        tables = []
        for kind in reversed(self.kinds):  # the longest contexts take the most memory to count: while little is there
            tables.append((yield from NGramCounts.in_pieces(text, folds, kind, self.backoff.device)))
        self._tables = tables[::-1]
        return self._tables

    def get_extra_state(self) -> Tensor:
        """The text: its counts are made again from it."""
        return torch.empty(0, dtype=torch.uint8) if self._text is None else self._text

    def set_extra_state(self, state: Tensor) -> None:
        self._knows_folds = False
        self._text, self._tables = (state.cpu() if len(state) else None), None

    @compiler.disable
    @torch.no_grad()
    def recall(self, tokens: Tensor, start: int = 0) -> Evidence:
        with torch.autocast(tokens.device.type, enabled=False):  # counts are numbers, not activations
            return self._recall(tokens, start)

    def _recall(self, tokens: Tensor, start: int) -> Evidence:
        shape = tokens[:, start:].shape
        n = shape.numel()
        p = torch.full((n, self.n_symbols), 1 / self.n_symbols, device=tokens.device, dtype=torch.float32)
        log_probs = torch.empty(n, len(self.levels), self.n_symbols, device=tokens.device, dtype=torch.float32)
        counts = torch.empty(len(self.backoff), 2, n, device=tokens.device, dtype=torch.float32)
        for kind, followers in enumerate(self._followers(tokens, start)):
            counts[kind, 0], counts[kind, 1] = followers.total, followers.distinct
            backoff = self._backoff(kind, followers.total, followers.distinct)
            p *= backoff[:, None]
            followers.add_to(p, (1 - backoff) / followers.total.clamp(min=1))
            if kind in self.levels:
                log_probs[:, self.levels.index(kind)] = p.clamp(min=_FLOOR).log_()
        total, distinct = counts[:, 0], counts[:, 1]
        seen = (total > 0).sum(0)
        rows = self._rows(tokens[:, start:].flatten(), total, distinct, seen)
        counts = counts.add_(1).log_().flatten(0, 1).t()
        return Evidence(
            log_probs.view(*shape, -1, self.n_symbols),
            counts.reshape(*shape, -1),
            rows.view(*shape, -1),
            seen.view(shape),
        )

    def _rows(self, tokens: Tensor, total: Tensor, distinct: Tensor, seen: Tensor) -> Tensor:
        """Rows of the gates' tables for n positions, (n, n_tables).

        Args:
            tokens: The last token, (n,).
            total: How often each kind of context was seen, (n_kinds, n).
            distinct: How many tokens followed it, (n_kinds, n).
            seen: How many kinds were seen, (n,).
        """
        rows, begin = [], 0
        n_kinds = len(total)
        for name in self._tables_of:  # one table after the other, in one embedding
            if name == "counts":
                own = torch.where(total > 0, 1 + _bucket(total, distinct), 0).t()
                rows.append(own + begin + torch.arange(n_kinds, device=own.device) * _N_ROWS)
                begin += n_kinds * _N_ROWS
            else:
                rows.append((begin + tokens * (n_kinds + 1) + seen)[:, None])
                begin += self.vocab_size * (n_kinds + 1)
        return torch.cat(rows, dim=1) if rows else tokens.new_empty(len(tokens), 0)

    def embed(self, x: Tensor, evidence: Evidence) -> Tensor:
        evidence = evidence.to(x.dtype)
        return x + self.reader(torch.cat([evidence.log_probs.flatten(2) * _SCALE, evidence.counts], dim=-1))

    def mix(self, logits: Tensor, x: Tensor, evidence: Evidence) -> Tensor:
        evidence = evidence.to(x.dtype)
        gates = self.gate(x) + self.gate_counts(evidence.counts * _SCALE)
        if self._tables_of:
            gates = gates + self.gate_tables(evidence.rows).sum(dim=2).to(gates.dtype)
        mixed = (gates[..., None] * evidence.log_probs).sum(dim=2)
        if hasattr(self, "gate_probabilities"):
            mixed = mixed + (self.gate_probabilities(x)[..., None] * evidence.log_probs.exp()).sum(dim=2)
        if hasattr(self, "units"):
            units = self.units(evidence.log_probs.transpose(2, 3) * _SCALE).relu()  # (B, T, n_symbols, units)
            gates = self.gate_units(torch.cat([x, evidence.counts * _SCALE], dim=-1))
            mixed = mixed + (units * gates[:, :, None]).sum(dim=-1)
        # A product, as its backward pass is one too: that of indexing would add up element by element.
        logits = logits + mixed @ nn.functional.one_hot(self.symbols, self.n_symbols).to(mixed.dtype).t()
        return self._calibrated(logits, evidence.seen) if hasattr(self, "calibration") else logits

    def _calibrated(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Adds to the log-probabilities of (B, T, vocab_size) logits a function of each: linear between the knots."""
        log_probs = logits.float().log_softmax(-1)
        place = (log_probs / _KNOT_STEP).clamp(min=1 - _N_KNOTS)
        values = self.calibration(seen).float()
        for knot in range(
            _N_KNOTS
        ):  # each is felt between its two neighbours; a loop of elementwise operators is fused
            log_probs = log_probs + values[..., knot, None] * (1 - (place + knot).abs()).clamp(min=0)
        return log_probs

    def _followers(self, tokens: Tensor, start: int = 0) -> Iterator["_Sparse | _Dense"]:
        """The tokens that followed the contexts of each position from `start`: in the text, then in the row so far."""
        n = tokens[:, start:].numel()
        if self._tables is None:
            self.hold_out(None)
        for kind, (context, known) in enumerate(contexts(tokens, self.kinds)):
            if self._tables is None:  # not filled yet, as in a warm-up: nothing is known
                yield _Dense(torch.zeros(n, self.n_symbols, device=tokens.device, dtype=torch.float32))
            else:
                context, known = (each[:, start:].flatten().contiguous() for each in (context, known))
                position, token, count = self._tables[kind].look_up(context, known)
                yield _Sparse(position, self.symbols.index_select(0, token.int()), count, n)
        seq_len = tokens.shape[1]
        follower = nn.functional.one_hot(self.symbols[tokens.roll(-1, dims=1)], self.n_symbols).float()
        past = torch.ones(seq_len, seq_len, dtype=torch.bool, device=tokens.device).tril(-1)[start:]
        for context, known in contexts(tokens, self.cache):
            context = torch.where(known, context, -1 - torch.arange(seq_len, device=tokens.device))
            same = (context[:, start:, None] == context[:, None, :]) & past
            yield _Dense((same.float() @ follower).flatten(0, 1))

    def _backoff(self, kind: int, total: Tensor, distinct: Tensor) -> Tensor:
        """Weight of the shorter contexts, (n,): 1 where this one was never seen."""
        return torch.where(total > 0, self.backoff[kind].float().index_select(0, _bucket(total, distinct)), 1.0)

    def _interpolate(self, rows: list[Tensor]) -> Iterator[None]:
        """Expectation maximisation of `backoff` on rows that the counts do not contain."""
        found = []
        for i in range(0, len(rows), _ROWS_AT_ONCE):
            found.append(self._shares(torch.stack(rows[i : i + _ROWS_AT_ONCE])))
            yield
        share, total, distinct = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        yield
        bucket = _bucket(total, distinct)
        yield
        kinds = range(len(share))
        for _ in range(_EM_STEPS):
            backoff = [self._backoff(kind, total[kind], distinct[kind]) for kind in kinds]
            p = [torch.full_like(share[0], 1 / self.n_symbols)]
            for kind in kinds:
                p.append((1 - backoff[kind]) * share[kind] + backoff[kind] * p[kind])
            # How probable it is, in the light of what followed, that the prediction came from this context or shorter.
            reached = torch.ones_like(share[0])
            passed, used = (torch.zeros_like(self.backoff, dtype=torch.float32) for _ in range(2))
            for kind in reversed(kinds):
                seen = (total[kind] > 0).float()
                shorter = reached * backoff[kind] * p[kind] / p[kind + 1]
                used[kind].index_add_(0, bucket[kind], reached * seen)
                passed[kind].index_add_(0, bucket[kind], shorter * seen)
                reached = shorter
            self.backoff.copy_((passed + 0.5) / (used + 1))
            yield

    def _shares(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows (B, T): each context's share of counts for the target, its total, its distinct ones, (n_kinds, n)."""
        tokens = targets.roll(1, dims=1).index_fill_(1, torch.tensor(0, device=targets.device), 0)
        target = self.symbols[targets.flatten()]
        found = [(f.of(target) / f.total.clamp(min=1), f.total, f.distinct) for f in self._followers(tokens)]
        share, total, distinct = (torch.stack(parts) for parts in zip(*found, strict=True))
        return share, total, distinct


class _Sparse:
    """Counts of symbols at n positions, as a list of those that are not zero."""

    def __init__(self, position: Tensor, symbol: Tensor, count: Tensor, n: int) -> None:
        self.position, self.symbol, self.count = position, symbol, count
        self.total = torch.zeros(n, device=count.device, dtype=torch.float32).index_add_(0, position, count)
        self.distinct = torch.zeros(n, device=count.device, dtype=torch.float32).index_add_(
            0, position, (count > 0).float()
        )

    def add_to(self, p: Tensor, weight: Tensor) -> None:
        """Adds the counts, each position's times its weight, to p (n, n_symbols)."""
        place = self.position * p.shape[1] + self.symbol
        p.view(-1).index_add_(0, place, weight.index_select(0, self.position).mul_(self.count))

    def of(self, symbol: Tensor) -> Tensor:
        """Counts of one symbol a position, (n,)."""
        hit = self.count * (self.symbol == symbol[self.position])
        return torch.zeros_like(self.total).index_add_(0, self.position, hit)


class _Dense:
    """Counts of symbols at n positions, as a table (n, n_symbols)."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts
        self.total = counts.sum(1)
        self.distinct = (counts > 0).sum(1).float()

    def add_to(self, p: Tensor, weight: Tensor) -> None:
        """Adds the counts, each position's times its weight, to p (n, n_symbols)."""
        p.addcmul_(self.counts, weight[:, None])

    def of(self, symbol: Tensor) -> Tensor:
        """Counts of one symbol a position, (n,)."""
        return self.counts.gather(1, symbol[:, None])[:, 0]


_BYTES_TO_FILL, _BYTES_OF_TABLE = 26, 3.4  # for each token of the text, and for each token and kind of context
_FLOOR = 1e-8  # of probabilities, before the logarithm
_SCALE = 0.2
_SAMPLED_ROWS = 512
_ROWS_AT_ONCE = 8
_EM_STEPS = 8
_N_TOTAL, _N_DISTINCT = 24, 5
_N_BUCKETS = _N_TOTAL * _N_DISTINCT
_N_KNOTS, _KNOT_STEP = 9, 1.0  # of the calibration: at log-probabilities of 0, -1, …, -8
_N_ROWS = _N_BUCKETS + 1  # one more for contexts that were never seen


def _bucket(total: Tensor, distinct: Tensor) -> Tensor:
    """Contexts that are trusted alike: by their total, two buckets a doubling, and by how many tokens followed."""
    by_total = (2 * total.clamp(min=1).log2()).long().clamp(max=_N_TOTAL - 1)
    by_distinct = distinct.clamp(min=1).log2().long().clamp(max=_N_DISTINCT - 1)
    return by_total * _N_DISTINCT + by_distinct
