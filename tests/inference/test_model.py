"""A trained model from Python: texts and scores, one or several at once."""

import math
import re

import pytest
import torch
from test_generate import Pieces

from bytelm import load
from bytelm.data.bytes import read_bytes
from bytelm.data.rows import EvalBatches
from bytelm.data.tokenizer import ByteTokenizer
from bytelm.errors import CheckpointError, ConfigError
from bytelm.gpt import GPT
from bytelm.inference.generate import write
from bytelm.inference.model import Model
from bytelm.inference.score import windows_of
from bytelm.metrics import BitsPerByte

TEXT = "to be or not to be, that is the question; whether é€"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    gpt = GPT(d_model=16, n_heads=2, n_layers=2, max_seq_len=16, tie_embeddings=False).double().eval()
    torch.nn.init.normal_(gpt.head.weight)
    return Model(gpt, ByteTokenizer())


def test_a_run_is_loaded_by_its_folder(trained):
    model = load("runs/tiny/version_0", device="cpu")
    assert model.generate("to be", max_new_tokens=5).startswith("to be")
    assert load("last", device="cpu").score("to be").bits_per_byte == model.score("to be").bits_per_byte
    with pytest.raises(CheckpointError):
        load("runs/other")


def test_texts_are_those_of_the_command(model):
    assert model.generate("to be", max_new_tokens=30) == "".join(write(model, "to be", max_new_tokens=30))
    greedy = {"max_new_tokens": 30, "temperature": 0, "top_k": None, "top_p": None}
    assert model.generate("or", **greedy) == "".join(write(model, "or", **greedy))


def test_several_prompts_have_seeds_that_follow_each_other(model):
    texts = model.generate(["to be", "", "to be"], max_new_tokens=20, seed=3, batch_size=2)
    alone = [
        model.generate(prompt, max_new_tokens=20, seed=seed) for prompt, seed in (("to be", 3), ("", 4), ("to be", 5))
    ]
    assert texts == alone
    assert texts[0] != texts[2]
    assert model.generate([]) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": 3}, "prompt: 3"),
        ({"prompt": ["a", None]}, "prompt: None"),
        ({"prompt": b"abc"}, "prompt: b'abc'"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"max_new_tokens": "x"}, "max_new_tokens: 'x'"),
        ({"max_new_tokens": 1.5}, "max_new_tokens: 1.5"),
        ({"max_new_tokens": None}, "max_new_tokens: None"),
        ({"temperature": "x"}, "temperature: 'x'"),
        ({"top_k": "x"}, "top_k: 'x'"),
        ({"top_p": "x"}, "top_p: 'x'"),
        ({"seed": "x"}, "seed: 'x'"),
        ({"temperature": -1}, "temperature: -1"),
        ({"top_p": 1.5}, "top_p: 1.5"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_values_that_are_not_accepted_are_named(model, options, said):
    with pytest.raises(ConfigError) as error:
        model.generate(**options)
    assert str(error.value).startswith(f"{said} cannot be used; accepted: ")


def test_a_text_is_scored_as_validation_scores_it(model):
    text = TEXT.encode()[:48].decode()
    score = BitsPerByte()
    for inputs, targets in EvalBatches(read_bytes(text.encode()), batch_size=2, seq_len=16):
        losses = torch.nn.functional.cross_entropy(model.gpt(inputs).transpose(1, 2), targets, reduction="none")
        score.update(losses, targets)
    found = model.score(text)
    assert found.bits_per_byte == pytest.approx(score.compute().item(), abs=1e-5)
    assert found.tokens == [bytes([byte]) for byte in text.encode()]
    assert found.byte_bits == found.bits
    assert sum(found.bits) / 48 == pytest.approx(found.bits_per_byte)


def test_several_texts_are_scored_as_each_alone(model):
    texts = [TEXT, "a", TEXT * 3]
    for found, text in zip(model.score(texts, batch_size=2), texts, strict=True):
        assert found.bits == pytest.approx(model.score(text).bits, abs=1e-9)
    with pytest.raises(ConfigError, match="text: ''"):
        model.score(["a", ""])
    with pytest.raises(ConfigError, match="text: 3"):
        model.score(3)


def test_the_bytes_of_a_token_share_its_cost():
    torch.manual_seed(0)
    gpt = GPT(d_model=16, n_heads=2, n_layers=1, vocab_size=8, max_seq_len=4).eval()
    found = Model(gpt, Pieces("abcdef", end_of_text=3)).score("abcdab")
    assert found.tokens == [b"ab", b"cd", b"ab"]
    assert found.byte_bits == [bits / 2 for bits in found.bits for _ in range(2)]
    assert found.bits_per_byte == pytest.approx(sum(found.bits) / 6)
    assert found.bits == pytest.approx([3.0] * 3, abs=0.5)  # near log2 of 8 tokens
    shades = re.findall(r"40, ([0-9.]+)\)", found._repr_html_())
    assert shades == [f"{bits / 2 / 8:.2f}" for bits in found.bits]  # by the cost of a byte
    with pytest.raises(ConfigError, match="end-of-text"):
        Model(gpt, Pieces("abcdef")).score("ab")


def test_a_score_is_shown_as_its_text_with_nothing_of_it_read_as_html(model):
    shown = model.score("<b>&")._repr_html_()
    assert "<b>" not in shown
    assert [f">{text}</span>" in shown for text in ("&lt;", "b", "&gt;", "&amp;")] == [True] * 4
    assert math.isfinite(float(shown.split(" bits per byte")[0].removeprefix("<p>")))


def test_each_token_of_a_text_is_predicted_once_and_the_last_row_is_full():
    assert windows_of([1, 2, 3, 4, 5], 0, 3) == [([0, 1, 2], [1, 2, 3]), ([2, 3, 4], [4, 5])]
    assert windows_of([1, 2], 0, 3) == [([0, 1], [1, 2])]
    assert windows_of([], 0, 3) == []
