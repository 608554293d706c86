"""Shapes: a part that returns another shape than its contract states is rejected before training."""

import pytest
import torch
from torch import nn

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.parts import contract
from bytelm.parts.attention import SDPA
from bytelm.parts.embedding import TokenEmbedding
from bytelm.parts.feedforward import GELU
from bytelm.parts.hyper_connections import HyperConnections
from bytelm.parts.logit_cap import SigmoidCap
from bytelm.parts.loss import CrossEntropy
from bytelm.parts.memory import NoMemory
from bytelm.parts.norm import RMSNorm
from bytelm.parts.position import Rotary
from bytelm.parts.shapes import RETURNS, check_shapes

TINY = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 8, "vocab_size": 20}
BASES = {
    "embedding": TokenEmbedding,
    "position": Rotary,
    "memory": NoMemory,
    "attention": SDPA,
    "feedforward": GELU,
    "norm": RMSNorm,
    "logit_cap": SigmoidCap,
    "block": HyperConnections,  # whose first and last blocks have different shapes
    "loss": CrossEntropy,
}


def model(kind, cls):
    if kind == "loss":
        return LanguageModel(GPT(**TINY), loss=cls)
    return LanguageModel(GPT(**TINY, **{kind: cls}))


def changed(base, method, change):
    """A part of the user's: one of bytelm's, of which a method returns something else."""

    def changed_method(self, *args, **kwargs):
        return change(getattr(base, method)(self, *args, **kwargs))

    return type("Mine", (base,), {method: changed_method, "__module__": "own"})


def doubled(output):
    return (
        (torch.cat([output[0], output[0]], -1), output[1]) if isinstance(output, tuple) else torch.stack([output] * 2)
    )


CASES = [(kind, method) for kind, methods in RETURNS.items() for method in methods if method != "scores"]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_each_kind_of_part_is_checked(kind, method):
    wrong = model(kind, changed(BASES[kind], method, doubled))
    with pytest.raises(ConfigError) as raised:
        check_shapes(wrong.gpt, wrong.loss)
    error = raised.value
    assert (error.key.rpartition(".")[2], error.value) == (kind, "own.Mine")
    assert error.accepted.startswith(f"{method} returned (")
    assert "; accepted: " in error.accepted
    right = model(kind, changed(BASES[kind], method, lambda output: output))
    check_shapes(right.gpt, right.loss)


def test_the_terms_of_scores_are_checked():
    def scores(self, seq_len):
        return torch.zeros(seq_len, seq_len)

    wrong = model("position", type("Mine", (Rotary,), {"scores": scores, "__module__": "own"}))
    with pytest.raises(ConfigError, match=r"scores returned \(7, 7\) for 7, .*accepted: None, or \(heads or 1"):
        check_shapes(wrong.gpt, wrong.loss)


class Wide(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)

    def forward(self, x):
        return self.up(x)


class Attending(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)


class Failing(Wide):
    def forward(self, x):
        raise NotImplementedError("only on GPUs")


class Counting(Wide):
    passes = 0

    def forward(self, x):
        self.passes += 1
        return torch.rand_like(x)


def test_the_message_names_the_part_and_both_shapes():
    expected = (
        f"model.gpt.feedforward: '{__name__}.Wide' cannot be used; forward returned (2, 7, 64) for (2, 7, 16), "
        "with d_model 16; accepted: the same shape"
    )
    wrong = model("feedforward", Wide)
    with pytest.raises(ConfigError) as raised:
        check_shapes(wrong.gpt, wrong.loss)
    assert str(raised.value) == expected


def test_a_part_that_returns_several_values_is_rejected():
    wrong = model("attention", Attending)
    with pytest.raises(ConfigError, match=r"forward returned \(\(2, 7, 16\), \(7, 2, 2\)\) for \(2, 7, 16\)"):
        check_shapes(wrong.gpt, wrong.loss)


def test_a_pass_that_fails_rejects_nothing_and_one_that_works_leaves_no_trace():
    failing, counting = model("feedforward", Failing), model("feedforward", Counting)
    state = torch.get_rng_state()
    for each in (failing, counting):
        check_shapes(each.gpt, each.loss)
    assert torch.equal(torch.get_rng_state(), state)
    assert [block.feedforward.passes for block in counting.gpt.blocks] == [0, 0]


def test_a_network_of_bytelms_own_parts_needs_no_pass(monkeypatch):
    plain = model("norm", nn.LayerNorm)
    monkeypatch.setattr(GPT, "forward", lambda *args: pytest.fail("a pass"))
    check_shapes(plain.gpt, plain.loss)
    assert plain.gpt.norm.config_key == "model.gpt.norm"
    assert set(RETURNS) | {"init"} >= set(BASES)
    assert len(RETURNS) + 1 == len(contract.KINDS)
