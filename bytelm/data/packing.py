"""Packing: documents as rows of equal length, each of which starts with the beginning of a document.

The rows are those of nanochat and autoresearch (https://github.com/karpathy/autoresearch): documents wait in a buffer;
a row takes the longest document that fits into the rest of it, again and again, and if none fits, the first tokens of
the shortest one, whose other tokens are dropped.
"""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bytelm.data.documents import group, groups, named
from bytelm.data.shared_tokens import SharedTokens
from bytelm.data.tokenizer import Tokenizer
from bytelm.errors import DataError

Tokens = NDArray[Any]
Place = tuple[int, int, int, int]
"""How often all files have been read, and the next document: file, group, and number in the group."""

AT_ONCE = 128  # documents that enter the buffer together
KEPT = 2**28  # most tokens that are kept for the next pass over the files, which then encodes nothing: 512 MB
START: Place = (0, 0, 0, 0)


class Entry(NamedTuple):
    """A document in the buffer.

    Attributes:
        number: Number of the document, in the order in which documents entered the buffer.
        source: File, group, and number in the group.
        tokens: Its tokens; the first one marks the beginning of a document.
    """

    number: int
    source: tuple[int, int, int]
    tokens: Tokens


class DocumentTokens:
    """The tokens of the documents of some files, each after the token that marks a beginning.

    Args:
        files: The files.
        column: See documents.groups.
        tokenizer: The tokenizer; it has a token that marks the beginning of a document.
        passes: How often the files are read; None: forever.
        shared: The tokens of other ranks' processes; None: this one encodes all documents.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        tokenizer: Tokenizer,
        passes: int | None = None,
        shared: SharedTokens | None = None,
    ) -> None:
        self.files = files
        self.column = column
        self.tokenizer = tokenizer
        self.passes = passes
        self.shared = shared
        self.dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        self._kept: dict[int, list[tuple[int, list[Tokens]]]] = {}  # by file: the numbers and tokens of its groups
        self._may_keep = KEPT if passes is None else 0

    def batches(self, place: Place) -> Iterator[tuple[Place, list[tuple[tuple[int, int, int], Tokens]]]]:
        """Yields documents with their sources, up to AT_ONCE of one group, and the place after them.

        Raises:
            DataError: The files have no documents, or cannot be read.
        """
        turn, first_file, first_group, first = place
        while self.passes is None or turn < self.passes:
            n_found, is_whole = 0, (first_file, first_group, first) == (0, 0, 0)
            for number in range(first_file, len(self.files)):
                for part, n_texts, batches in self._groups(number, first_group, first):
                    n_found += n_texts
                    for begin, some in batches:
                        sources = [(number, part, begin + i) for i in range(len(some))]
                        yield (turn, number, part, begin + len(some)), list(zip(sources, some, strict=True))
                    first = 0
                first_group = 0
            if is_whole and not n_found:
                raise DataError("data", named(self.files), "there are no documents")
            turn, first_file = turn + 1, 0

    def _groups(
        self, number: int, first_group: int, first: int
    ) -> Iterator[tuple[int, int, Iterator[tuple[int, list[Tokens]]]]]:
        """Yields the groups of a file: number, documents, and batches of tokens with the number of their first one.

        Keeps the tokens of a file that is read from its beginning, if those of all files are not too many.
        """
        if number in self._kept:
            for part, kept in self._kept[number]:
                if part >= first_group:
                    yield part, len(kept), ((at, kept[at : at + AT_ONCE]) for at in range(first, len(kept), AT_ONCE))
                    first = 0
            return
        keeps, parts = (first_group, first) == (0, 0) and self._may_keep > 0, []
        for part, texts in groups(self.files[number], self.column, first_group):
            tokens: list[Tokens] = []
            parts.append((part, tokens))
            yield part, len(texts), self._encoded((number, part), texts, first, tokens if keeps else None)
            first = 0
        if keeps and self._may_keep > 0:
            self._kept[number] = parts
        elif self._may_keep <= 0:
            self._kept.clear()

    def _encoded(
        self, name: tuple[int, int], texts: list[str], first: int, kept: list[Tokens] | None
    ) -> Iterator[tuple[int, list[Tokens]]]:
        def encode(begin: int) -> list[Tokens]:
            return self.encode(texts[begin : begin + AT_ONCE])

        begins = range(first, len(texts), AT_ONCE)
        batches: Iterator[tuple[int, list[Tokens]]] = ((begin, encode(begin)) for begin in begins)
        if self.shared is not None and len(begins) > 1:  # else one would encode, and the others wait
            batches = self.shared.batches(name, begins, encode)
        for begin, some in batches:
            if kept is not None and self._may_keep > 0:
                kept += some
                self._may_keep -= sum(map(len, some))
            yield begin, some

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Returns the tokens of some texts."""
        begin = [self.tokenizer.end_of_text]
        return [np.array(begin + tokens, self.dtype) for tokens in self.tokenizer.encode_batch(texts)]

    def documents(self, sources: Sequence[tuple[int, int, int]]) -> list[Tokens]:
        """Returns the tokens of the documents with these sources."""
        found: dict[tuple[int, int, int], Tokens] = {}
        for number, part in sorted({source[:2] for source in sources}):
            wanted = sorted({source for source in sources if source[:2] == (number, part)})
            texts = group(self.files[number], self.column, part)
            found |= zip(wanted, self.encode([texts[i] for _, _, i in wanted]), strict=True)
        return [found[source] for source in sources]


class BestFit:
    """Packs documents into rows; a place between two rows can be saved.

    Args:
        documents: The documents.
        row_tokens: Tokens of a row.
        buffer_size: Documents that wait in the buffer, at least, unless there are no more.
        state: Continue after the rows that were taken before `state_dict`; None: from the first row.
    """

    def __init__(
        self, documents: DocumentTokens, row_tokens: int, buffer_size: int, state: dict[str, Any] | None = None
    ) -> None:
        self.documents = documents
        self.row_tokens = row_tokens
        self.buffer_size = buffer_size
        self._lengths: list[int] = []  # of the documents in the buffer, in ascending order, each once
        self._of_length: dict[int, deque[Entry]] = {}  # in the order in which they entered the buffer
        self._n_waiting = self._n_entered = 0
        self._place = START
        if state is not None:
            self._place = tuple(state["place"])
            sources = [tuple(source) for source in state["buffer"].tolist()]
            for source, tokens in zip(sources, documents.documents(sources), strict=True):
                self._enter(source, tokens)
        self._batches = documents.batches(self._place)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place: the next document, and the sources of those in the buffer, int64, (n, 3)."""
        waiting = sorted(chain.from_iterable(self._of_length.values()), key=lambda entry: entry.number)
        sources = np.array([entry.source for entry in waiting], np.int64).reshape(-1, 3)
        return {"place": list(self._place), "buffer": sources}

    def take(self, n_rows: int) -> Tokens:
        """Returns the next rows, (n_rows, row_tokens); fewer if the documents are used up."""
        rows = np.empty((n_rows, self.row_tokens), self.documents.dtype)
        for done in range(n_rows):
            if not self._fill(rows[done]):
                return rows[:done]
        return rows

    def _fill(self, row: Tokens) -> bool:
        at = 0
        while at < len(row):
            self._refill()
            if not self._n_waiting:
                return False
            left = len(row) - at
            longest = bisect_right(self._lengths, left) - 1
            tokens = self._leave(self._lengths[max(longest, 0)])[:left]
            row[at : at + len(tokens)] = tokens
            at += len(tokens)
        return True

    def _refill(self) -> None:
        while self._n_waiting < self.buffer_size:
            try:
                self._place, entering = next(self._batches)
            except StopIteration:
                return
            for source, tokens in entering:
                self._enter(source, tokens)

    def _enter(self, source: tuple[int, int, int], tokens: Tokens) -> None:
        length = len(tokens)
        if length not in self._of_length:
            self._of_length[length] = deque()
            insort(self._lengths, length)
        self._of_length[length].append(Entry(self._n_entered, source, tokens))
        self._n_entered += 1
        self._n_waiting += 1

    def _leave(self, length: int) -> Tokens:
        entries = self._of_length[length]
        tokens = entries.popleft().tokens
        if not entries:
            del self._of_length[length]
            del self._lengths[bisect_right(self._lengths, length) - 1]
        self._n_waiting -= 1
        return tokens
