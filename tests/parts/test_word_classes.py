"""Classes of words, and contexts that consist of them."""

import random

import pytest
import torch

from bytelm.errors import ConfigError
from bytelm.parts import word_classes as module
from bytelm.parts.memory import NGramMemory
from bytelm.parts.ngram_counts import ContextKind, _PrefixSums, contexts, words_of
from bytelm.parts.word_classes import class_of, word_classes

NOUNS, VERBS, ADJECTIVES = ["cat", "dog", "king", "fool"], ["sees", "hears", "calls"], ["old", "young", "good"]


def sentences(n=600):
    rng = random.Random(0)

    def choose(words):  # the first one is frequent
        return rng.choices(words, [6, *[1] * (len(words) - 1)])[0]

    return "".join(
        f"the {choose(ADJECTIVES)} {choose(NOUNS)} {choose(VERBS)} a {choose(NOUNS)}. " for _ in range(n)
    ).encode()


def tensor(text):
    return torch.tensor(list(text), dtype=torch.uint8)


def hash_of(word, salt=0):
    row = torch.tensor([list(word.encode())])
    begin = torch.tensor([[max(0, len(word) - 3) if salt else 0]])
    return _PrefixSums(row).spans(begin, torch.tensor([[len(word)]]), salt)[0]


@pytest.fixture
def few_classes(monkeypatch):
    monkeypatch.setattr(module, "N_CLASSES", 5)


@pytest.fixture
def found(few_classes):
    return word_classes(*words_of(tensor(sentences() + b"a zounds")))


def one_class(found, word):
    return int(class_of(*found, hash_of(word)))


def test_words_beside_the_same_words_have_a_class(found):
    for words in (NOUNS, VERBS, ADJECTIVES):
        assert len({one_class(found, word) for word in words}) == 1
    assert len({one_class(found, words[0]) for words in (NOUNS, VERBS, ADJECTIVES)}) == 3


def test_endings_have_the_class_of_most_of_their_words(found):
    assert class_of(*found, hash_of("hears", -1)) == one_class(found, "hears")
    assert one_class(found, "zounds") == 0, "it occurs once"
    assert one_class(found, "unseen") == 0


def test_keys_are_sorted_and_their_number_is_fixed(found):
    keys, classes = found
    assert len(keys) == len(classes) == module.MOST_KEYS
    assert (keys.diff() >= 0).all()


@pytest.mark.parametrize("text", [b"... 12 !", b"word", b"a b c d e"])
def test_texts_with_few_words(text):
    keys, classes = word_classes(*words_of(tensor(text)))
    assert classes.max() == 0
    assert len(keys) == module.MOST_KEYS


def context(row, n, found):
    ((hashes, known),) = contexts(torch.tensor([[0, *row]]), [ContextKind(n, classes=True)], found)
    return int(hashes[0, -1]), bool(known[0, -1])


def test_contexts(found):
    plain = context(b". the old ca", 2, found)
    assert plain[1]
    assert context(b"- The\nYOUNG ca", 2, found) == plain, "case and line breaks are ignored"
    assert context(b". the cat ca", 2, found) != plain, "another class"
    assert context(b". the old ka", 2, found) != plain, "another beginning"
    assert context(b". the old, ca", 2, found) != plain, "another token between"
    three = context(b". old cat ca", 3, found)
    assert context(b". good, fool ca", 3, found) == three
    assert context(b". the fool ca", 3, found) != three


@pytest.mark.parametrize(("row", "n", "known"), [(b"old ca", 2, False), (b" old ca", 2, True), (b" old ca", 3, False)])
def test_a_word_that_may_have_begun_before_the_row_is_unknown(row, n, known, found):
    assert context(row, n, found)[1] == known


def test_a_checkpoint_has_the_classes(few_classes):
    def memory():
        return NGramMemory(256, 16, orders=[1], words=[1, 2], classes=[2, 3], cache=[])

    text = tensor(sentences())
    one, other = memory(), memory()
    one.fill(text, (torch.arange(len(text)) // 256 % 3).to(torch.uint8), 64)
    other.load_state_dict(one.state_dict())
    one.hold_out(None)
    rows = torch.tensor([[0, *sentences()[500:563]]])
    assert one.class_of_key.max() == 5
    assert torch.equal(one.recall(rows).values, other.recall(rows).values)
    assert [(kind.n, kind.words, kind.classes) for kind in one.kinds] == [
        (1, False, False),
        (1, True, False),
        (2, False, True),
        (3, False, True),
        (2, True, False),
    ]


def test_rejected():
    with pytest.raises(ConfigError, match="accepted: numbers from 2"):
        NGramMemory(256, 16, classes=[1, 2])
