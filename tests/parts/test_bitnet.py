"""BitNet: ternary weights, 8-bit inputs, gradients past the roundings, and the replaced layers."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import param_groups
from bytelm.parts import contract
from bytelm.parts.bitnet import BitLinear, BitNet, ResidualBitLinear
from bytelm.parts.block import Parallel
from bytelm.parts.feedforward import FusedGELU, SwiGLU
from bytelm.parts.hyper_connections import HyperConnections
from bytelm.parts.init import ResidualProjection
from bytelm.parts.linear_attention import DeltaNet


def tiny(**options):
    torch.manual_seed(0)
    return GPT(**{"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 64, "max_seq_len": 24, **options})


def test_a_layer_is_the_formula():
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(6, 4)).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    mean = sum(abs(w) for row in layer.weight.tolist() for w in row) / 24
    ternary = [[max(-1, min(1, round(w / mean))) * mean for w in row] for row in layer.weight.tolist()]
    assert {round(w / mean) for row in ternary for w in row} == {-1, 0, 1}
    expected = []
    for vector in x.flatten(0, 1).tolist():
        rms = (sum(value**2 for value in vector) / 6 + torch.finfo(torch.float64).eps) ** 0.5
        normed = [value / rms for value in vector]
        step = max(map(abs, normed)) / 127
        rounded = [round(value / step) * step for value in normed]
        expected.append([sum(w * value for w, value in zip(row, rounded, strict=True)) for row in ternary])
    expected = torch.tensor(expected, dtype=torch.float64).view(2, 3, 4) + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_gradients_pass_the_roundings():
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(6, 4, bias=False)).double()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    layer(x).sin().sum().backward()
    # The same product, without roundings in front of the values that it had with them.
    normed = (x.detach() / (x.detach().square().mean(dim=1, keepdim=True) + 2.3e-16).sqrt()).requires_grad_()
    step = normed.abs().amax(dim=1, keepdim=True) / 127
    rounded = ((normed / step).round() * step).detach().requires_grad_()
    mean = layer.weight.abs().mean()
    weight = ((layer.weight / mean).round().clamp(-1, 1) * mean).detach().requires_grad_()
    (rounded @ weight.T).sin().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    inner = x.detach().requires_grad_()
    torch.nn.functional.rms_norm(inner, (6,)).backward(rounded.grad)
    torch.testing.assert_close(x.grad, inner.grad)


def test_a_block_replaces_the_linear_layers_of_its_parts_and_keeps_names_weights_and_groups():
    plain, bits = tiny(), tiny(block=BitNet)
    ours, theirs = bits.state_dict(), plain.state_dict()
    assert {key.replace(".order.", ".") for key in ours} == set(theirs)
    assert all(torch.equal(value, theirs[key.replace(".order.", ".")]) for key, value in ours.items())
    assert [len(group["params"]) for group in param_groups(bits)] == [len(g["params"]) for g in param_groups(plain)]
    kinds = {name.rpartition(".")[2]: type(module) for name, module in bits.blocks.named_modules()}
    assert (kinds["qkv"], kinds["up"]) == (BitLinear, BitLinear)
    assert (kinds["out"], kinds["down"]) == (ResidualBitLinear, ResidualBitLinear)
    assert issubclass(ResidualBitLinear, ResidualProjection)
    assert [type(m) for m in bits.modules() if isinstance(m, nn.Linear) and not isinstance(m, BitLinear)] == [
        type(plain.head)
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"order": Parallel}, {"order": HyperConnections}, {"feedforward": SwiGLU}, {"attention": DeltaNet}],
)
def test_any_order_and_any_parts_learn_and_generate(options):
    options = dict(options)
    gpt = tiny(block=functools.partial(BitNet, order=options.pop("order")) if "order" in options else BitNet, **options)
    tokens = torch.randint(64, (2, 24))
    gpt(tokens).logsumexp(dim=-1).mean().backward()
    missing = [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in missing if "_connection." not in name] == []  # connections begin with zeros in the way
    with torch.no_grad():
        cache = gpt.new_cache()
        pieces = torch.cat([gpt(tokens[:, :end], cache) for end in (5, 6, 24)], dim=1)
        # The last bits of a sum can move an input across the border between two of its 255 values.
        torch.testing.assert_close(pieces, gpt(tokens), rtol=0, atol=2e-2)


def test_kernels_that_skip_the_layers_are_rejected():
    run = SimpleNamespace(precision="32-true")
    with pytest.raises(ConfigError, match=r"model\.gpt\.feedforward: 'FusedGELU' .*accepted with BitLinear: .*GELU"):
        contract.check([tiny(block=BitNet, feedforward=FusedGELU)], run)
    with pytest.raises(ConfigError, match=r"trainer\.plugins: 'FP8' .*accepted with BitNet"):
        contract.check([tiny(block=BitNet)], SimpleNamespace(precision="fp8-tensorwise"))
