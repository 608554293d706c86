"""SigmoidCap: the formula, the same probabilities in training and validation, and rejected combinations."""

import math

import pytest
import torch
from torch.nn import functional as F

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.parts.logit_cap import SigmoidCap
from bytelm.parts.loss import ChunkedCrossEntropy

SIZES = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 11, "max_seq_len": 8}


def gpt(**options):
    torch.manual_seed(0)
    return GPT(**SIZES, **options)


def test_a_logit_is_the_formula():
    logits = [-80.0, -5.0, 0.0, 2.5, 90.0]
    expected = [23 / (1 + math.exp(-(x + 5) / 7.5)) for x in logits]
    assert SigmoidCap()(torch.tensor(logits, dtype=torch.float64)).tolist() == pytest.approx(expected, rel=1e-12)
    ours = SigmoidCap(scale=4.0, shift=-1.0, width=2.0)(torch.tensor([3.0]))
    assert ours.item() == pytest.approx(4 / (1 + math.exp(-1)))


def test_logits_in_bf16_are_capped_in_float32():
    capped = SigmoidCap()(torch.tensor([2.5], dtype=torch.bfloat16))
    assert capped.dtype == torch.float32
    assert capped.item() == pytest.approx(23 / (1 + math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("loss", [None, ChunkedCrossEntropy])
def test_training_and_validation_use_the_capped_logits(loss):
    plain, module = gpt(), LanguageModel(gpt(logit_cap=SigmoidCap), **({} if loss is None else {"loss": loss}))
    tokens, targets = torch.randint(11, (2, 2, 8))
    capped = 23 * torch.sigmoid((plain(tokens) + 5) / 7.5)
    expected = F.cross_entropy(capped.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(module.training_step((tokens, targets), 0), expected)
    torch.testing.assert_close(module._nats((tokens, targets)).mean(), expected)


def test_two_limits_of_the_logits_are_rejected():
    with pytest.raises(ConfigError, match=r"model\.gpt\.logit_softcap: 15\.0 .*accepted with a logit_cap: null"):
        gpt(logit_cap=SigmoidCap, logit_softcap=15.0)
