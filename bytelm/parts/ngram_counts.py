"""Counts of the tokens that follow each context in a text: an index, built once by sorting, with batched lookup.

A context ends with the token before the predicted one: the last n tokens, or all tokens since the beginning of a word.
A hash identifies a context (Karp and Rabin 1987: prefix sums of a polynomial give the hash of any substring). For each
context the index lists the tokens that followed and their counts.

The text is divided into folds. One fold at a time can be held out: its counts are subtracted. A network can then learn
how much to trust the counts on text that they do not contain, as in validation (deleted estimation, Jelinek and Mercer
1980).
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from bytelm.parts.word_classes import LAST, class_of

_MULTIPLIER, INVERSE = 0x5851F42D4C957F2D, pow(0x5851F42D4C957F2D, -1, 1 << 64)
_CODE, _MIX = -0x61C8864680B583EB, 0x3C79AC492BA7B653
_CLASS_SALT = 1_000  # of contexts of classes
_HASH_BITS = 40  # with 8 bits of a symbol and 4 of a fold they fit into an int64
_KEY_BITS = 16  # of a hash, beside those that number its bucket
PIECE = 1 << 16  # tokens that are hashed together, which keeps memory low; contexts do not cross the edges
RANGE = 1 << 17  # tokens whose contexts are in a range, about
_MAX_STEP = 255  # largest uint8
MAX_FOLDS = 16


class NGramCounts:
    """Counts of the tokens that follow the contexts of one kind in a text.

    A number for context, token and fold, a triple, stands for each token: after sorting, equal triples are adjacent.
    The index has an entry for each pair of context and token: 7 bytes, and 2 to 4 for its share of the buckets. The
    first bits of a context's hash number its bucket, and the next 16 distinguish the one or two entries in it: a lookup
    needs no search. For each fold there is a list of the entries that it has, as steps from one to the next, and of
    their counts, 2 bytes each. Larger steps and counts take several numbers.

    Args:
        text: Tokens below 256, uint8, (n,).
        folds: Fold of each token, below MAX_FOLDS, uint8, (n,).
        kind: Kind of the contexts.
        device: Device of the lookup.
        max_pairs: Number of pairs after which no further contexts are counted, about; None: no maximum. Contexts are
            counted in the order of their hashes, so those that are left out are a random share of all.
        classes: Classes of words, on the CPU, for contexts of classes.
    """

    held_out: int | None
    _fold_ends: list[int]
    _starts: Tensor  # of each bucket the first entry, and the end

    def __init__(
        self,
        text: Tensor,
        folds: Tensor,
        kind: "ContextKind",
        device: torch.device,
        max_pairs: int | None = None,
        classes: "WordClasses | None" = None,
    ) -> None:
        for _ in self._count(text, folds, kind, device, max_pairs, classes):
            pass

    @classmethod
    def in_pieces(
        cls,
        text: Tensor,
        folds: Tensor,
        kind: "ContextKind",
        device: torch.device,
        max_pairs: int | None = None,
        classes: "WordClasses | None" = None,
    ) -> Generator[None, None, "NGramCounts"]:
        """The same index, made in pieces of work of some ten milliseconds each.

        Args:
            text: As for the class.
            folds: As for the class.
            kind: As for the class.
            device: As for the class.
            max_pairs: As for the class.
            classes: As for the class.

        Yields:
            After each piece.

        Returns:
            The index.
        """
        counts = cls.__new__(cls)
        yield from counts._count(text, folds, kind, device, max_pairs, classes)
        return counts

    @classmethod
    def of_index(
        cls,
        device: torch.device,
        bits: int,
        n_stops: Sequence[int],
        starts: Tensor,
        keys: Tensor,
        tokens: Tensor,
        counts: Tensor,
        steps: Tensor,
        in_fold: Tensor,
    ) -> "NGramCounts":
        """The index from its tensors, as the kernel makes them (bytelm/kernels/ngram_memory.py).

        Args:
            device: Device of the lookup.
            bits: Number of bits of a bucket's number.
            n_stops: Number of steps of each fold.
            starts: First entry of each bucket, and the end, int32.
            keys: Of each entry, int16.
            tokens: Of each entry, uint8.
            counts: Of each entry, float32.
            steps: Steps from entry to entry, one fold after the other, uint8.
            in_fold: Counts after each step, uint8.
        """
        made = cls.__new__(cls)
        made._bucket_shift, made._key_shift = _HASH_BITS - bits, _HASH_BITS - bits - _KEY_BITS
        made._fold_ends = list(accumulate(n_stops))
        made._starts, made._keys, made._tokens = starts.to(device), keys.to(device), tokens.to(device)
        made._counts, made._step, made._count_in_fold = counts.to(device), steps.to(device), in_fold.to(device)
        made.held_out = None
        return made

    def _count(
        self,
        text: Tensor,
        folds: Tensor,
        kind: "ContextKind",
        device: torch.device,
        max_pairs: int | None,
        classes: "WordClasses | None",
    ) -> Iterator[None]:
        by_range: list[_Range] = []
        end, last = 0, torch.zeros(MAX_FOLDS, dtype=torch.int32)
        for triples in _by_range(text, folds, kind, classes):
            if triples is not None:
                if not by_range:
                    self._set_buckets(triples, _n_ranges(text))
                by_range.append(_Range(triples, end, last, self._key_shift))
                if len(triples):
                    self._count_in_buckets(triples)
                end, last = by_range[-1].end, by_range[-1].last
                if max_pairs is not None and end >= max_pairs:
                    break
            yield
        sizes = torch.tensor([[len(own) for own in each.step] for each in by_range])
        self._fold_ends = sizes.sum(0).cumsum(0).tolist()
        self._step = _joined([each.step for each in by_range]).to(device)
        self._count_in_fold = _joined([each.count for each in by_range]).to(device)
        yield
        self._tokens = torch.cat([each.tokens for each in by_range]).to(device)
        self._keys = torch.cat([each.keys for each in by_range]).to(device)
        del by_range
        self._starts = self._starts.cumsum_(0).to(device)
        self._counts = torch.zeros(len(self._tokens), device=device, dtype=torch.float32)
        self.held_out = None
        for fold in range(MAX_FOLDS):
            yield
            self._add(fold, 1.0)

    @property
    def n_pairs(self) -> int:
        """Number of different pairs of a context and a token."""
        return len(self._tokens)

    def _set_buckets(self, triples: Tensor, n_ranges: int) -> None:
        """Chooses the number of buckets from the first of n ranges, which all have about the same number of entries."""
        n_entries = max(1, len((triples >> 4).unique_consecutive())) * n_ranges
        bits = min(n_entries.bit_length() - 1, _HASH_BITS - _KEY_BITS)
        self._bucket_shift, self._key_shift = _HASH_BITS - bits, _HASH_BITS - bits - _KEY_BITS
        self._starts = torch.zeros((1 << bits) + 1, dtype=torch.int32)

    def _count_in_buckets(self, triples: Tensor) -> None:
        """Adds the number of entries of each bucket to the element after it; triples are those of a range."""
        bucket = (triples >> 4).unique_consecutive() >> 8 + self._bucket_shift
        first = int(bucket[0])
        counts = torch.bincount(bucket - first)
        self._starts[first + 1 : first + 1 + len(counts)] += counts.int()

    def hold_out(self, fold: int | None) -> None:
        """Removes a fold's counts and restores those of the fold held out before; None: restores all."""
        if fold == self.held_out:
            return
        for changed, sign in ((self.held_out, 1.0), (fold, -1.0)):
            if changed is not None:
                self._add(changed, sign)
        self.held_out = fold

    def _add(self, fold: int, sign: float) -> None:
        own = slice(self._fold_ends[fold - 1] if fold else 0, self._fold_ends[fold])
        entry = self._step[own].cumsum(0, dtype=torch.int32)
        self._counts.index_add_(0, entry, sign * self._count_in_fold[own].float())

    def look_up(self, context: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens that followed the context of each position, one entry a token.

        Args:
            context: Hash of each position's context, (n,).
            known: Whether the position has a context, (n,).

        Returns:
            The position, ascending, int32, the token, uint8, and its count, float32, each (n_entries,). The count is 0
            if only the held-out fold has the token.
        """
        bucket = context >> self._bucket_shift
        first = self._starts.index_select(0, bucket)
        n_entries = (self._starts.index_select(0, bucket + 1) - first) * known
        last = n_entries.cumsum(0, dtype=torch.int32)
        position = torch.arange(len(context), dtype=torch.int32, device=context.device).repeat_interleave(n_entries)
        entry = torch.arange(len(position), dtype=torch.int32, device=context.device)
        entry += (first - last + n_entries).index_select(0, position)
        key = _keys(context >> self._key_shift)
        own = (self._keys.index_select(0, entry) == key.index_select(0, position)).nonzero()[:, 0]
        position, entry = position.index_select(0, own), entry.index_select(0, own)
        return position, self._tokens.index_select(0, entry), self._counts.index_select(0, entry)


@dataclass(frozen=True)
class ContextKind:
    """A kind of context.

    Attributes:
        n: Number of tokens, or of words.
        words: Whether the context is the beginning of the current word with the n - 1 words before it (ignoring case
            and line breaks), instead of the last n tokens.
        classes: Whether the classes of the n - 1 words before it are the context, instead of these words, and the
            tokens between the last of them and the current word.
    """

    n: int
    words: bool = False
    classes: bool = False


WordClasses = tuple[Tensor, Tensor]
"""Hashes of words and endings, and their classes (word_classes.py)."""


def contexts(
    tokens: Tensor, kinds: Sequence[ContextKind], classes: WordClasses | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Contexts of each position, one kind after the other.

    Args:
        tokens: Inputs, a begin-of-row marker first, (B, T).
        kinds: Kinds of contexts.
        classes: Classes of words, for kinds of contexts that consist of them.

    Yields:
        The hash, a positive int64, and whether the row is long enough for the context, each (B, T).
    """
    plain = _PrefixSums(tokens)
    words = _Words(tokens) if any(kind.words or kind.classes for kind in kinds) else None
    time = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    for kind in kinds:
        if kind.classes:
            assert words is not None
            assert classes is not None
            yield words.of_classes(kind.n, classes)
        elif kind.words:
            assert words is not None
            start = words.starts(kind.n)
            yield words.sums.hashes(start, -kind.n), start > 1  # the first word may have begun before the row
        else:
            start = time - kind.n + 1
            yield plain.hashes(start.clamp(min=0), kind.n), start > 0


def words_of(text: Tensor) -> tuple[Tensor, Tensor]:
    """Hash of each word of a text, and of its last letters, int64, (n_words,)."""
    found = [_Words(piece.long()[None]).complete() for piece in text.split(PIECE)]
    words, endings = zip(*found, strict=True)
    return torch.cat(words), torch.cat(endings)


def _by_range(text: Tensor, folds: Tensor, kind: ContextKind, classes: WordClasses | None) -> Iterator[Tensor | None]:
    """All triples of a text in ascending order, one range of contexts after the other.

    A sort of all at once would take long. So each piece of the text is sorted and cut at the edges of the ranges, and
    what all pieces have in a range is sorted together.

    Yields:
        None after each piece of the text, then the triples of each range.
    """
    n_ranges = _n_ranges(text)
    edges = torch.arange(1, n_ranges) * (-(-(1 << _HASH_BITS) // n_ranges) << 12)
    pieces = []
    for piece in zip(text.split(PIECE), folds.split(PIECE), strict=True):
        triples = _triples(*piece, kind, classes)
        triples.numpy().sort()  # in place, and faster than torch.sort
        pieces.append(triples.tensor_split(torch.searchsorted(triples, edges)))
        yield None
    for parts in zip(*pieces, strict=True):
        triples = torch.cat(parts)
        triples.numpy().sort()
        yield triples


def _n_ranges(text: Tensor) -> int:
    return 1 + len(text) // RANGE


def _keys(hashes: Tensor) -> Tensor:
    """The last 16 bits of hashes, int16."""
    return hashes.to(torch.int16)


class _Range:
    """The entries of a range of contexts.

    Args:
        triples: Its triples, ascending.
        begin: Number of its first entry.
        before: Last entry of each fold in earlier ranges, int32, (MAX_FOLDS,).
        key_shift: Number of bits after the key in a hash.

    Attributes:
        step: Of each fold, the steps to the entries that it has, uint8.
        count: Of each fold, what is added to the count of the entry that a step leads to, uint8.
        tokens: Token of each entry, uint8.
        keys: Key of each entry, int16.
        end: Number of the entry after the last one.
        last: Like `before`, after this range.
    """

    def __init__(self, triples: Tensor, begin: int, before: Tensor, key_shift: int) -> None:
        triples, count = triples.unique_consecutive(return_counts=True)
        fold = triples & 15
        entries, per_entry = (triples >> 4).unique_consecutive(return_counts=True)
        self.end = begin + len(entries)
        self.tokens = (entries & 255).to(torch.uint8)
        self.keys = _keys(entries >> 8 + key_shift)
        entry = torch.arange(begin, self.end, dtype=torch.int32).repeat_interleave(per_entry, output_size=len(triples))
        sizes = torch.bincount(fold, minlength=MAX_FOLDS)
        by_fold = fold.to(torch.uint8).argsort(stable=True)
        entry, count, fold = entry[by_fold], count[by_fold], fold[by_fold]
        own = sizes > 0  # folds that occur
        ends = sizes.cumsum(0)
        step = entry.diff(prepend=entry[:1])
        step[(ends - sizes)[own]] = entry[(ends - sizes)[own]] - before[own]
        self.last = before.clone()
        self.last[own] = entry[ends[own] - 1]
        step, count, fold = _in_bytes(step, count, fold)
        per_fold = torch.bincount(fold, minlength=MAX_FOLDS).tolist()
        self.step, self.count = step.split(per_fold), count.split(per_fold)


def _in_bytes(step: Tensor, count: Tensor, fold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Writes steps and counts as uint8: larger steps with stops in between, larger counts at several stops.

    Args:
        step: Steps, from 0, (n,).
        count: Counts to add after each step, from 1, (n,).
        fold: Their folds, (n,).

    Returns:
        The same, for as many stops as it takes.
    """
    before, after = step // _MAX_STEP, (count - 1) // _MAX_STEP  # further stops
    if before.any() or after.any():
        stops = 1 + before + after
        own = torch.arange(len(step)).repeat_interleave(stops)
        place = torch.arange(len(own)) - (stops.cumsum(0) - stops)[own]  # among the stops of one step
        passing, there = place < before[own], place == before[own]
        step = torch.where(passing, _MAX_STEP, torch.where(there, step[own] % _MAX_STEP, 0))
        count = torch.where(passing, 0, torch.where(there, (count[own] - 1) % _MAX_STEP + 1, _MAX_STEP))
        fold = fold[own]
    return step.to(torch.uint8), count.to(torch.uint8), fold


def _joined(by_range: list[Sequence[Tensor]]) -> Tensor:
    """Values of each fold, one fold after the other, of the values that each range has for each fold."""
    return torch.cat([each for fold in zip(*by_range, strict=True) for each in fold])


def _triples(text: Tensor, folds: Tensor, kind: ContextKind, classes: WordClasses | None) -> Tensor:
    """Context, token and fold as one number, for each token with a context."""
    ((context, known),) = contexts(text.long().roll(1)[None], [kind], classes)
    return (context << 12 | text.long() << 4 | folds.long())[known]


class _Words:
    """The beginnings of the current or last word of each position, and of the words before it."""

    def __init__(self, tokens: Tensor) -> None:
        time = torch.arange(tokens.shape[1], device=tokens.device)
        in_word = IN_WORD.to(tokens.device)[tokens]
        self.sums = _PrefixSums(FOLDED.to(tokens.device)[tokens])
        self._start = torch.where(in_word, 0, time + 1).cummax(1).values
        self._last_letter = torch.where(in_word, time, -1).cummax(1).values

    def starts(self, n: int) -> Tensor:
        """The beginning of the n-th last word, (B, T); 0 if the row has fewer words."""
        start = self._start
        for _ in range(n - 1):
            before = self._last_letter.gather(1, (start - 1).clamp(min=0))
            start = torch.where(before > 0, self._start.gather(1, before.clamp(min=0)), 0)
        return start

    def complete(self) -> tuple[Tensor, Tensor]:
        """Hash of each word of the first row that has ended, and of its ending, (n_words,)."""
        last = torch.nonzero((self._last_letter[0, :-1] >= 0) & (self._start[0, 1:] > self._start[0, :-1]))[:, 0]
        last = last[self._last_letter[0, last] == last][None]
        begin, end = self._start[:1].gather(1, last), last + 1
        return self.sums.spans(begin, end)[0], self.sums.spans(torch.maximum(begin, end - LAST), end, -1)[0]

    def of_classes(self, n: int, classes: WordClasses) -> tuple[Tensor, Tensor]:
        """Hash of the current word's beginning, what is before it, and the classes of the n - 1 words before."""
        hashes, start = None, self._start
        for _ in range(n - 1):
            last = self._last_letter.gather(1, (start - 1).clamp(min=0))
            start = torch.where(last > 0, self._start.gather(1, last.clamp(min=0)), 0)
            end = last.clamp(min=0) + 1
            if hashes is None:
                hashes = self.sums.hashes(end, _CLASS_SALT + n)
            word = class_of(*classes, self.sums.spans(start, end))
            by_ending = class_of(*classes, self.sums.spans(torch.maximum(start, end - LAST), end, -1))
            hashes = _mixed(hashes * _CODE + torch.where(word > 0, word, by_ending) * _MIX)
        assert hashes is not None
        return hashes & (1 << _HASH_BITS) - 1, start > 1


def _mixed(hashes: Tensor) -> Tensor:
    hashes = hashes ^ hashes >> 31
    hashes *= _MIX
    return hashes ^ hashes >> 33


class _PrefixSums:
    """Sums of code(x_j) M^-j over the prefixes of a row; all arithmetic is modulo 2^64."""

    def __init__(self, tokens: Tensor) -> None:
        n = tokens.shape[1]
        codes = (tokens + 1) * _CODE
        codes ^= codes >> 29
        codes *= _powers(INVERSE, n, tokens.device)
        self.powers = _powers(_MULTIPLIER, n + 1, tokens.device)
        self.sums = torch.nn.functional.pad(codes.cumsum(1), (1, 0))

    def spans(self, start: Tensor, end: Tensor, salt: int = 0) -> Tensor:
        """Hash of each substring from `start` to before `end`, all 64 bits, of the shape of both."""
        return _mixed((self.sums.gather(1, end) - self.sums.gather(1, start)) * self.powers[start] + salt)

    def hashes(self, start: Tensor, salt: int) -> Tensor:
        """Hash of each substring from `start` to its position, (B, T)."""
        hashes = (self.sums[:, 1:] - self.sums.gather(1, start)) * self.powers[start] + salt
        return _mixed(hashes) & (1 << _HASH_BITS) - 1


def _powers(base: int, n: int, device: torch.device) -> Tensor:
    """1, base, base^2, ... modulo 2^64."""
    signed = base - (1 << 64) if base >> 63 else base
    powers = torch.full((n,), signed, device=device)
    powers[0] = 1
    return powers.cumprod(0)


def _folded() -> Tensor:
    """The bytes of word contexts: lower case, and a space for a line break."""
    table = torch.arange(256)
    table[65:91] += 32
    table[10] = 32
    return table


FOLDED = _folded()
IN_WORD = torch.tensor([chr(byte).isalpha() or byte == 39 or byte >= 128 for byte in range(256)])
