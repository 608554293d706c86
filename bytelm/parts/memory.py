"""Memories: counts of the tokens that followed a context elsewhere in the text, used beside the weights.

A memory recalls evidence for each position from the tokens alone; the evidence is added to the embeddings, and mixed
into the logits. It learns by counting, in seconds, what weights would take many steps to learn.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bytelm.config.values import PositiveFloat, PositiveInt
from bytelm.errors import ConfigError
from bytelm.kernels import ngram_memory as kernels
from bytelm.parts.contract import Memory, Run
from bytelm.parts.ngram_counts import ContextKind, NGramCounts, WordClasses, contexts, words_of
from bytelm.parts.word_classes import MOST_KEYS, word_classes
from bytelm.system import compiler
from bytelm.system.memory import release_memory, trim_heap


@dataclass
class Evidence:
    """The content of a memory for each position.

    Attributes:
        values: `log_probs` and `counts`, one after the other, (B, T, width).
        n_symbols: Number of symbols of each prediction.
        n_levels: Number of predictions, L.
    """

    values: Tensor
    n_symbols: int
    n_levels: int

    @property
    def log_probs(self) -> Tensor:
        """Predictions of the next token, in nats, from the least to the most specific, (B, T, L, n_symbols)."""
        return self.values[..., : self.n_levels * self.n_symbols].unflatten(-1, (self.n_levels, self.n_symbols))

    @property
    def counts(self) -> Tensor:
        """How often each kind of context was seen and how many tokens followed it, logarithms, (B, T, 2 n_kinds)."""
        return self.values[..., self.n_levels * self.n_symbols :]

    def beside(self, x: Tensor) -> "Evidence":
        """The same in the precision of x, unless autocast converts it."""
        if torch.is_autocast_enabled(x.device.type):
            return self
        return Evidence(self.values.to(x.dtype), self.n_symbols, self.n_levels)


class NoMemory(Memory):
    """No memory: the network predicts from the row alone.

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
        classes: Contexts in the training text: the current word's beginning and the classes of the n - 1 words before
            it (word_classes.py), for each n from 2, ascending.
        cache: Contexts in the row itself: the last n tokens, for each n, ascending.
        max_pairs: Maximum number of different pairs of a context in the text and a token that are counted, of all kinds
            together, about; a pair takes 11 to 18 bytes. No kind gets more than 1.4 times its equal share of those that
            are left after longer contexts. Of a kind that has more, a random share of the contexts is counted. Default:
            no maximum.
        n_symbols: The n_symbols - 1 most frequent tokens of the text have a symbol each, all others share one.
        read_range: The network reads how far a log-probability lies above -read_range nats, 0 if it lies below. Most
            symbols are improbable: without this, large numbers that say little are most of what the network reads,
            which slows down learning. Default: it reads all log-probabilities as they are.

    Raises:
        ConfigError: A value that is not accepted; the message names it.
    """

    optimizer_groups: ClassVar = {"reader": "hidden"}
    backoff: Tensor
    symbols: Tensor
    class_keys: Tensor
    class_of_key: Tensor

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        orders: list[PositiveInt] = [3, 4, 5, 6, 8],  # noqa: B006 (shown by --help, never changed)
        words: list[PositiveInt] = [1, 2, 3],  # noqa: B006
        cache: list[PositiveInt] = [3],  # noqa: B006
        n_symbols: PositiveInt = 128,
        max_pairs: PositiveInt | None = None,
        read_range: PositiveFloat | None = None,
        classes: list[PositiveInt] = [],  # noqa: B006
    ) -> None:
        super().__init__()
        if vocab_size > 256:
            raise ConfigError("vocab_size", vocab_size, "accepted by NGramMemory: up to 256, as for bytes")
        for name, values in (("orders", orders), ("words", words), ("classes", classes), ("cache", cache)):
            if list(values) != sorted(set(values)) or (name == "orders" and not values):
                raise ConfigError(name, values, "accepted: numbers in ascending order, each once, such as [2, 3, 4]")
        if 1 in classes:
            raise ConfigError("classes", classes, "accepted: numbers from 2: a word's beginning, and words before it")
        self.n_symbols = min(n_symbols, vocab_size)
        self.max_pairs = max_pairs
        self.read_range = read_range
        of_words = [ContextKind(n, words=True) for n in words]
        n_short = sum(n == 1 for n in words)  # classes come after the word's beginning alone, before words with others
        of_classes = [ContextKind(n, classes=True) for n in classes]
        self.kinds = [*(ContextKind(n) for n in orders), *of_words[:n_short], *of_classes, *of_words[n_short:]]
        self.cache = [ContextKind(n) for n in cache]
        n_kinds = len(self.kinds) + len(self.cache)
        # Every second prediction is as good as all: neighbours say nearly the same.
        self.levels = sorted({*range(1, n_kinds, 2), len(self.kinds) - 1, n_kinds - 1})
        self.reader = nn.Linear(len(self.levels) * self.n_symbols + 2 * n_kinds, d_model, bias=False)
        self.gate = nn.Linear(d_model, len(self.levels), bias=False)
        self.gate_counts = nn.Linear(2 * n_kinds, len(self.levels))
        self.register_buffer("backoff", torch.full((n_kinds, _N_BUCKETS), 0.5))
        self.register_buffer("symbols", torch.arange(vocab_size).clamp(max=self.n_symbols - 1))
        self.has_classes = bool(classes)
        if classes:  # buffers, as clusters that are found again could differ
            self.register_buffer("class_keys", torch.full((MOST_KEYS,), torch.iinfo(torch.int64).max))
            self.register_buffer("class_of_key", torch.zeros(MOST_KEYS, dtype=torch.uint8))
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
            if name.startswith("gate"):
                nn.init.zeros_(p)
        with torch.no_grad():
            self.gate_counts.bias[-1] = 1.0

    def memory_bytes(self, data: Any) -> int:
        """Memory that filling takes, in bytes, as measured on English prose; other texts have other contexts."""
        n_tokens = len(data.train_split)
        of_tables = n_tokens * _BYTES_OF_TABLE * len(self.kinds)
        if self.max_pairs is not None:
            of_tables = min(of_tables, self.max_pairs * _BYTES_OF_PAIR)
        return int(n_tokens * _BYTES_TO_FILL + of_tables)

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
        trim_heap()  # of what threads leave after training
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
        """Fills the memory, in pieces of some ten milliseconds, or of a kernel that counts two kinds of contexts."""
        device = self.backoff.device
        self._tables = None  # those of a checkpoint, before there are others
        self._text = text.clone()  # a view would take the storage behind it, other splits too, into checkpoints
        self.backoff.fill_(0.5)
        frequency = torch.bincount(text, minlength=len(self.symbols)).argsort(descending=True, stable=True)
        self.symbols[frequency] = torch.arange(len(self.symbols), device=device).clamp(max=self.n_symbols - 1)
        if self.has_classes:
            yield
            for buffer, found in zip((self.class_keys, self.class_of_key), word_classes(*words_of(text)), strict=True):
                buffer.copy_(found)
            trim_heap()  # before counting, which needs the most
            yield
        for table in (yield from self._count(text, folds)):
            table.hold_out(0)
            yield
        starts = (folds[::seq_len] == 0).nonzero()[:, 0] * seq_len
        starts = starts[starts + seq_len <= len(text)]
        starts = starts[:: max(1, len(starts) // _SAMPLED_ROWS)]
        yield from self._interpolate([text[start : start + seq_len].to(device).long() for start in starts])
        trim_heap()
        self._knows_folds = True

    def hold_out(self, fold: int | None) -> None:
        """Takes one fold of the text out of the counts; None: counts all of it."""
        if self._tables is None and self._text is not None:  # from a checkpoint, which has the text alone
            for _ in self._count(self._text, torch.zeros_like(self._text)):
                pass
        for table in self._tables or []:
            table.hold_out(fold)

    def _count(self, text: Tensor, folds: Tensor) -> Generator[None, None, list[NGramCounts]]:
        tables: list[NGramCounts] = []
        classes = None if self.classes is None else (self.classes[0].cpu(), self.classes[1].cpu())
        kinds = self.kinds[::-1]  # the longest contexts take the most memory to count: while little is there
        for i in range(0, len(kinds), _KINDS_AT_ONCE):
            limit = None
            if self.max_pairs is not None:
                left = self.max_pairs - sum(table.n_pairs for table in tables)
                limit = max(min(left, int(_LARGEST_SHARE * left / (len(kinds) - i))), 1)
            some = kinds[i : i + _KINDS_AT_ONCE]
            made = [_counted(text, folds, kind, self.backoff.device, limit, classes) for kind in some]
            tables += yield from _side_by_side(made)
            trim_heap()  # sorting has filled its gaps
        self._tables = tables[::-1]
        return self._tables

    @property
    def classes(self) -> WordClasses | None:
        """Classes of words, if there are contexts of them."""
        return (self.class_keys, self.class_of_key) if self.has_classes else None

    def get_extra_state(self) -> Tensor:
        """The text: its counts are made again from it."""
        return torch.empty(0, dtype=torch.uint8) if self._text is None else self._text

    def set_extra_state(self, state: Tensor) -> None:
        self._knows_folds = False
        self._text, self._tables = (state.cpu() if len(state) else None), None

    @compiler.disable
    @torch.no_grad()
    def recall(self, tokens: Tensor, start: int = 0) -> Evidence:
        device = tokens.device
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) in kernels.DTYPES
        dtype = torch.get_autocast_dtype(device.type) if autocast else torch.float32
        with torch.autocast(device.type, enabled=False):  # counts are numbers, not activations
            if self._tables is None:
                self.hold_out(None)
            if kernels.is_available(device, dtype):
                of = self.kinds, self.cache, self._tables, self.backoff, self.symbols, self.n_symbols, self.levels
                values = kernels.recall(tokens, start, *of, dtype, self.classes)
            else:
                values = self._recall(tokens, start).to(dtype)
        return Evidence(values, self.n_symbols, len(self.levels))

    def _recall(self, tokens: Tensor, start: int) -> Tensor:
        shape = tokens[:, start:].shape
        n = shape.numel()
        p = torch.full((n, self.n_symbols), 1 / self.n_symbols, device=tokens.device, dtype=torch.float32)
        of_counts = len(self.levels) * self.n_symbols
        values = torch.empty(n, of_counts + 2 * len(self.backoff), device=tokens.device, dtype=torch.float32)
        for kind, followers in enumerate(self._followers(tokens, start)):
            values[:, of_counts + 2 * kind], values[:, of_counts + 2 * kind + 1] = followers.total, followers.distinct
            backoff = self._backoff(kind, followers.total, followers.distinct)
            p *= backoff[:, None]
            followers.add_to(p, (1 - backoff) / followers.total.clamp(min=1))
            if kind in self.levels:
                begin = self.levels.index(kind) * self.n_symbols
                torch.log(p.clamp(min=_FLOOR), out=values[:, begin : begin + self.n_symbols])
        values[:, of_counts:].log1p_()
        return values.view(*shape, -1)

    def embed(self, x: Tensor, evidence: Evidence) -> Tensor:
        scale = self.reader.weight.new_ones(self.reader.in_features)  # of the weights: they are fewer than the inputs
        scale[: evidence.n_levels * evidence.n_symbols] = _SCALE
        weight = self.reader.weight * scale
        values = evidence.beside(x).values
        if self.read_range is None:
            return x + nn.functional.linear(values, weight)
        values = values.clamp(min=-self.read_range)  # counts are positive
        # The range is added after the product, as in bf16 it would round the probable symbols to a few hundredths.
        of_range = self.read_range * weight[:, : evidence.n_levels * evidence.n_symbols].sum(dim=1)
        return x + nn.functional.linear(values, weight) + of_range

    def mix(self, logits: Tensor, x: Tensor, evidence: Evidence) -> Tensor:
        evidence = evidence.beside(x)
        gates = self.gate(x) + self.gate_counts(evidence.counts * _SCALE)
        if not torch.compiler.is_compiling() and kernels.is_available(x.device, evidence.values.dtype):
            return kernels.mix(logits, gates, evidence.values, self.symbols, self.n_symbols)
        mixed = (gates[..., None] * evidence.log_probs.to(x.dtype)).sum(dim=2)
        # A product, as its backward pass is one too: that of indexing would add up element by element.
        return logits + mixed @ nn.functional.one_hot(self.symbols, self.n_symbols).to(mixed.dtype).t()

    def _followers(self, tokens: Tensor, start: int = 0) -> Iterator["_Sparse | _Dense"]:
        """The tokens that followed the contexts of each position from `start`: in the text, then in the row so far."""
        n = tokens[:, start:].numel()
        if self._tables is None:
            self.hold_out(None)
        for kind, (context, known) in enumerate(contexts(tokens, self.kinds, self.classes)):
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
        if kernels.is_available(targets.device, torch.float32):
            of = self.kinds, self.cache, self._tables, self.symbols, self.n_symbols, self.classes
            return kernels.shares(tokens, targets, *of)
        target = self.symbols[targets.flatten()]
        found = [(f.of(target) / f.total.clamp(min=1), f.total, f.distinct) for f in self._followers(tokens)]
        share, total, distinct = (torch.stack(parts) for parts in zip(*found, strict=True))
        return share, total, distinct


def _counted(
    text: Tensor, folds: Tensor, kind: ContextKind, device: torch.device, limit: int | None, classes: WordClasses | None
) -> Generator[None, None, NGramCounts]:
    """The counts of one kind of contexts, by the kernel in one piece, where there is one."""
    if not kernels.is_available(torch.device("cpu"), torch.float32):
        return (yield from NGramCounts.in_pieces(text, folds, kind, device, limit, classes))
    return NGramCounts.of_index(device, **kernels.count(text.cpu(), folds.cpu(), kind, limit, classes))


def _side_by_side(works: Sequence[Generator[None, None, NGramCounts]]) -> Generator[None, None, list[NGramCounts]]:
    """Does work that consists of pieces on a thread each, a piece of each at a time; returns the results.

    Sorting and counting are operators that use a single thread. If torch has only one, the work is done in turn.
    """
    results: dict[int, NGramCounts] = {}

    def advance(i: int) -> None:
        try:
            next(works[i])
        except StopIteration as end:
            results[i] = end.value

    with ThreadPoolExecutor(min(len(works), torch.get_num_threads())) as pool:
        while left := [i for i in range(len(works)) if i not in results]:
            for _ in pool.map(advance, left):
                pass
            yield
    return [results[i] for i in range(len(works))]


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
_BYTES_OF_PAIR = 14
_FLOOR = 1e-8  # of probabilities, before the logarithm
_SCALE = 0.2
_KINDS_AT_ONCE = 2  # that are counted, whatever the number of threads: memory, and shares of a maximum, depend on it
_LARGEST_SHARE = 1.4
_SAMPLED_ROWS = 512
_ROWS_AT_ONCE = 8
_EM_STEPS = 8
_N_TOTAL, _N_DISTINCT = 24, 5
_N_BUCKETS = _N_TOTAL * _N_DISTINCT


def _bucket(total: Tensor, distinct: Tensor) -> Tensor:
    """Contexts that are trusted alike: by their total, two buckets a doubling, and by how many tokens followed."""
    by_total = (2 * total.clamp(min=1).log2()).long().clamp(max=_N_TOTAL - 1)
    by_distinct = distinct.clamp(min=1).log2().long().clamp(max=_N_DISTINCT - 1)
    return by_total * _N_DISTINCT + by_distinct
