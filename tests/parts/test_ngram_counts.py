"""The n-gram index: its counts equal a plain count over the text, with and without held-out folds."""

import random
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bytelm.parts.ngram_counts import MAX_FOLDS, ContextKind, NGramCounts, contexts

CPU = torch.device("cpu")
PIECE = 65_536  # contexts do not reach over the edges of what is hashed at once
KINDS = [
    ContextKind(1),
    ContextKind(2),
    ContextKind(3),
    ContextKind(8),
    *(ContextKind(n, words=True) for n in (1, 2, 3)),
]
KIND_IDS = [f"{'words' if kind.words else 'order'} {kind.n}" for kind in KINDS]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)


def prose(n, seed=0):
    words = ["to", "Be", "or", "NOT", "that's", "is", "the", "question", "caf\xe9", "nobler\n", "-", "1603"]
    rng = random.Random(seed)
    return " ".join(rng.choice(words) for _ in range(n // 4 + 1)).encode()[:n]


TEXTS = {
    "prose": prose(600),
    "one word, repeated": b"a " * 30,
    "bytes 0 and 255": bytes(random.Random(1).choices([0, 255, 1, 32], k=300)),
    "all bytes": bytes(random.Random(2).choices(range(256), k=400)),
    "ends in a word": b"a bc a bc a bc a bcd",
}


def tensor(text):
    return torch.tensor(list(text), dtype=torch.uint8)


def no_folds(text):
    return torch.zeros(len(text), dtype=torch.uint8)


def table(text, kind, folds=None):
    folds = no_folds(text) if folds is None else torch.tensor(folds, dtype=torch.uint8)
    return NGramCounts(tensor(text), folds, kind, CPU)


def is_letter(byte):
    return chr(byte).isalpha() or byte == ord("'") or byte >= 128


def context_by_hand(past, kind):
    """The tokens before a token, by a plain loop; None if `past` is too short."""
    if not kind.words:
        return past[-kind.n :] if len(past) >= kind.n else None
    start = len(past)
    for word in range(kind.n):
        while word and start and not is_letter(past[start - 1]):
            start -= 1
        while start and is_letter(past[start - 1]):
            start -= 1
        if start == 0:
            return None  # the word may have begun before
    return bytes(32 if byte == 10 else byte + 32 if 65 <= byte <= 90 else byte for byte in past[start:])


def count_by_hand(text, kind, left_out=()):
    """Counters of the tokens that followed each context, without the positions that are left out."""
    counts = defaultdict(Counter)
    for begin in range(0, len(text), PIECE):
        piece = text[begin : begin + PIECE]
        for i, token in enumerate(piece):
            context = context_by_hand(piece[max(0, i - 60) : i] if i > 60 else piece[:i], kind)
            if context is not None and begin + i not in left_out:
                counts[context][token] += 1
    return counts


def look_up(counts, row, kind):
    """Tokens that followed the context before each byte of a row, and after its last: {token: count}, without zeros."""
    tokens = torch.tensor([[0, *row]])
    ((context, known),) = contexts(tokens, [kind])
    position, token, count = counts.look_up(context[0], known[0])
    assert (position.dtype, token.dtype, count.dtype) == (torch.int32, torch.uint8, torch.float32)
    assert position.tolist() == sorted(position.tolist())
    pairs = list(zip(position.tolist(), token.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "one entry for each token"
    found = [{} for _ in range(len(row) + 1)]
    for (at, follower), n in zip(pairs, count.tolist(), strict=True):
        if n:
            found[at][follower] = n
    return found


def expected(counted, row, kind):
    found = (context_by_hand(row[:i], kind) for i in range(len(row) + 1))
    return [{} if context is None else dict(+counted.get(context, Counter())) for context in found]


@each_kind
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_counts_are_those_of_a_plain_count(text, kind):
    counts = table(text, kind)
    counted = count_by_hand(text, kind)
    assert look_up(counts, text, kind) == expected(counted, text, kind)
    row = text[len(text) // 3 : len(text) // 2]  # begins in the middle, perhaps of a word
    assert look_up(counts, row, kind) == expected(counted, row, kind)


@each_kind
@settings(max_examples=settings().max_examples // 3)
@given(
    text=st.text(alphabet="aB' \n.\xe9\0\xff", min_size=5, max_size=40), row=st.text(alphabet="aAB' \n.", max_size=8)
)
@example(text="a b " * 6, row="")
def test_counts_are_those_of_a_plain_count_for_any_text(kind, text, row):
    text, row = f". a. b. c. {text}".encode("latin-1"), row.encode("latin-1")
    counts, counted = table(text, kind), count_by_hand(text, kind)
    for looked_up in (text, row):
        assert look_up(counts, looked_up, kind) == expected(counted, looked_up, kind)


@pytest.mark.parametrize("kind", [ContextKind(1), ContextKind(3), ContextKind(2, words=True)], ids=str)
def test_long_texts_lose_only_contexts_across_pieces(kind):
    text = prose(PIECE + 5_000)
    counts = table(text, kind)
    rows = [text[:100], text[PIECE - 50 : PIECE + 50], text[-100:]]
    counted = count_by_hand(text, kind)
    for row in rows:
        assert look_up(counts, row, kind) == expected(counted, row, kind)
    whole = sum(context_by_hand(text[max(0, i - 60) : i], kind) is not None for i in range(len(text)))
    left_out = whole - sum(sum(followers.values()) for followers in counted.values())
    assert 0 < left_out < 30


@each_kind
def test_a_text_without_a_context_of_the_kind_has_no_entries(kind):
    text = b"abab" if kind.words else b"abababab"[: kind.n]
    counts = table(text, kind)
    for fold in (0, None):
        counts.hold_out(fold)
        assert look_up(counts, b"ab ab ab ab", kind) == [{}] * 12


@each_kind
def test_a_fold_held_out_leaves_the_counts_of_the_text_without_its_tokens(kind):
    text, rng = prose(900), random.Random(3)
    folds = [rng.choice([0, 1, 7, MAX_FOLDS - 1]) for _ in range(len(text))]
    counts = table(text, kind, folds)
    everything = look_up(counts, text, kind)
    assert everything == expected(count_by_hand(text, kind), text, kind)
    for fold in (0, 7, MAX_FOLDS - 1, 3):  # nothing is in 3
        counts.hold_out(fold)
        left_out = {i for i, own in enumerate(folds) if own == fold}
        assert look_up(counts, text, kind) == expected(count_by_hand(text, kind, left_out), text, kind), fold
    counts.hold_out(None)
    assert look_up(counts, text, kind) == everything


def test_repeated_hold_outs_do_not_change_counts():
    text, rng = prose(900), random.Random(3)
    kind = ContextKind(1)
    counts = table(text, kind, [rng.randrange(8) for _ in range(len(text))])
    everything = look_up(counts, text, kind)
    for _ in range(300):
        counts.hold_out(rng.choice([None, *range(8)]))
    counts.hold_out(None)
    assert look_up(counts, text, kind) == everything


def test_holding_out_all_of_a_text_leaves_nothing():
    counts = table(TEXTS["prose"], ContextKind(2))
    counts.hold_out(0)
    counts.hold_out(0)
    assert look_up(counts, TEXTS["prose"], ContextKind(2)) == [{}] * (len(TEXTS["prose"]) + 1)


@each_kind
def test_unseen_contexts_have_no_entries(kind):
    counts = table(b"the cat sat on the mat. " * 5, kind)
    assert look_up(counts, b"!? zebra, zygote; zoo? zap xxxxxxxx", kind)[-1] == {}


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_contexts_that_reach_the_beginning_of_the_row_are_unknown(n):
    row = [0, *b"abcdefghij"]
    ((_, known),) = contexts(torch.tensor([row]), [ContextKind(n)])
    assert known[0].tolist() == [t >= n for t in range(len(row))]


@pytest.mark.parametrize(
    ("row", "words", "known"),
    [
        (b"ab cd ", 1, "   kkkk"),
        (b"ab cd ", 2, "      k"),  # "ab" may be the end of a longer word
        (b" ab cd", 2, "    kkk"),
        (b" ab cd", 3, "       "),
        (b"  a", 1, " kkk"),
        (b"abc", 1, "    "),
    ],
)
def test_a_word_that_may_have_begun_before_the_row_is_unknown(row, words, known):
    ((_, found),) = contexts(torch.tensor([[0, *row]]), [ContextKind(words, words=True)])
    assert "".join(" k"[k] for k in found[0].tolist()) == known


@each_kind
def test_rows_have_the_hashes_of_the_stream_they_are_cut_from(kind):
    stream = torch.tensor([[0, *prose(400)]])
    ((of_stream, _),) = contexts(stream, [kind])
    begins = [0, 7, 100, 211]
    rows = torch.cat([stream[:, begin + 1 : begin + 101] for begin in begins])
    ((of_rows, known),) = contexts(rows.roll(1, dims=1).index_fill(1, torch.tensor(0), 0), [kind])
    assert known.any(dim=1).all()
    for begin, hashes, is_known in zip(begins, of_rows, known, strict=True):
        assert torch.equal(hashes[is_known], of_stream[0, begin : begin + 100][is_known])
    assert of_stream.min() >= 0


def test_different_contexts_have_different_hashes():
    """Among them those whose letters are exchanged or shifted, and those of two kinds."""
    row = torch.tensor([[0, *random.Random(5).choices(range(256), k=3_000)]])
    seen = {}
    for kind in (
        ContextKind(2),
        ContextKind(3),
        ContextKind(5),
        ContextKind(1, words=True),
        ContextKind(2, words=True),
    ):
        ((context, known),) = contexts(row, [kind])
        for t in known[0].nonzero()[:, 0].tolist():
            by_hand = (kind, context_by_hand(bytes(row[0, 1 : t + 1].tolist()), kind))
            assert seen.setdefault(context[0, t].item(), by_hand) == by_hand
    assert len(seen) > 8_000


def hashes(row, words):
    ((context, known),) = contexts(torch.tensor([[0, *row]]), [ContextKind(words, words=True)])
    assert known[0, -1]
    return context[0, -1].item()


@pytest.mark.parametrize("words", [1, 2, 3])
def test_words_ignore_case_and_line_breaks(words):
    context = hashes(b"x. to be or no", words)
    assert hashes(b"x. To BE\nOR No", words) == context
    assert hashes(b"something else: to be or no", words) == context
    assert hashes(b"x. to be or na", words) != context
    assert (hashes(b"x. to be, or no", words) == context) == (words < 3), "punctuation is part of the context"
    assert (hashes(b"x. to be of no", words) == context) == (words == 1)


def test_orders_distinguish_case_and_line_breaks():
    rows = torch.tensor([[0, *row] for row in (b"be or", b"bE or", b"be\nor")])
    ((context, _),) = contexts(rows, [ContextKind(4)])
    assert len(set(context[:, -1].tolist())) == 3


def test_several_kinds_equal_each_kind_alone():
    rows = torch.tensor([[0, *prose(60, seed)] for seed in range(3)])
    for kind, (context, known) in zip(KINDS, contexts(rows, KINDS), strict=True):
        ((alone, known_alone),) = contexts(rows, [kind])
        assert torch.equal(context, alone)
        assert torch.equal(known, known_alone)


def test_counts_and_steps_beyond_255_are_exact():
    """Entries of a fold lie up to 700 apart, and one is counted 600 times: neither fits into a byte."""
    rng = random.Random(3)
    text = b"ab" * 600 + bytes(rng.choices(range(256), k=1_400)) + b"ab" * 5
    folds = [0] * 600 + [1] * (len(text) - 1_200) + [2] * 600
    folds[1_900] = 3  # the only token of its fold
    kind = ContextKind(1)
    counts = table(text, kind, folds)
    for fold in (None, 0, 1, 2, 3, None):
        counts.hold_out(fold)
        left_out = {i for i, of in enumerate(folds) if of == fold}
        assert look_up(counts, b"abxab" + text[-300:], kind) == expected(
            count_by_hand(text, kind, left_out), b"abxab" + text[-300:], kind
        )


def test_a_maximum_of_pairs_leaves_out_a_share_of_the_contexts_and_keeps_the_others_exact(monkeypatch):
    monkeypatch.setattr("bytelm.parts.ngram_counts.RANGE", 100)
    text, kind = bytes(random.Random(3).choices(range(97, 107), k=3_000)), ContextKind(3)
    whole, folds = table(text, kind), no_folds(text)
    part = NGramCounts(tensor(text), folds, kind, CPU, max_pairs=1_000)
    assert 1_000 <= len(part._tokens) < 1_200 < len(whole._tokens)
    ((context, known),) = contexts(tensor(text).long().roll(1)[None], [kind])
    found = [each.look_up(context[0], known[0]) for each in (whole, part)]
    (position, *entries), (own_position, *own_entries) = found
    has = torch.isin(position, own_position)
    assert 0.2 < has.float().mean() < 0.6
    assert torch.equal(position[has], own_position)
    for each, own in zip(entries, own_entries, strict=True):
        assert torch.equal(each[has], own), "a context is counted with all of its tokens"
