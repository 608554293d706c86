"""Normalisations against their formulas, with and without learned weights."""

import pytest
import torch

from bytelm.parts.norm import LayerNorm, RMSNorm

# At the second scale the default eps is as large as the variance.
SCALES = pytest.mark.parametrize("scale", [1.0, 2e-3])


def inputs(scale):
    return scale * (torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0)) + 0.7)


@SCALES
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}])
def test_layer_norm_is_the_formula(scale, weight, bias, options):
    norm = LayerNorm(10, weight=weight, bias=bias, **options)
    assert len(list(norm.parameters())) == weight + bias
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = inputs(scale)
    centred = x - x.sum(dim=-1, keepdim=True) / 10
    expected = centred / (centred.pow(2).sum(dim=-1, keepdim=True) / 10 + options.get("eps", 1e-5)).sqrt()
    expected = expected * (norm.weight if weight else 1) + (norm.bias if bias else 0)
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


@SCALES
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}])
def test_rms_norm_is_the_formula(scale, weight, options):
    norm = RMSNorm(10, weight=weight, **options)
    assert len(list(norm.parameters())) == weight
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = inputs(scale)
    expected = x / (x.pow(2).sum(dim=-1, keepdim=True) / 10 + options.get("eps", 1e-6)).sqrt()
    torch.testing.assert_close(norm(x), expected * (norm.weight if weight else 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_learned_weights_start_as_the_identity(norm):
    x = inputs(1.0)
    plain = norm(10, weight=False, bias=False) if norm is LayerNorm else norm(10, weight=False)
    assert torch.equal(norm(10)(x), plain(x))
