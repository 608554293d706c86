"""Feed-forward networks against formulas of their activations."""

import math

import pytest
import torch

from bytelm.parts.feedforward import GELU, GeGLU, ReLU, ReLUSquared, SiLU, SwiGLU

ACTIVATIONS = [
    (ReLU, {}, lambda x: max(x, 0.0)),
    (ReLUSquared, {}, lambda x: max(x, 0.0) ** 2),
    (SiLU, {}, lambda x: x / (1 + math.exp(-x))),
    (GELU, {}, lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
    (
        GELU,
        {"approximate": "tanh"},
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
]
GATED = [
    (SwiGLU, lambda x: x / (1 + math.exp(-x))),
    (GeGLU, lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
]


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def elementwise(function, x):
    return torch.tensor([function(value) for value in x.flatten().tolist()], dtype=x.dtype).view_as(x)


@pytest.mark.parametrize(("feedforward", "options", "activation"), ACTIVATIONS)
def test_feedforward_is_down_of_activation_of_up(feedforward, options, activation):
    torch.manual_seed(0)
    module = feedforward(6, 20, **options).double()
    x = 3 * torch.randn(2, 5, 6, dtype=torch.float64)
    hidden = elementwise(activation, linear(module.up, x))
    torch.testing.assert_close(module(x), linear(module.down, hidden), rtol=0, atol=1e-9)


def test_the_polynomial_gelu_and_its_gradient_are_gelu_to_a_millionth():
    gelu = GELU(6, 20, approximate="polynomial")
    x = torch.linspace(-12, 12, 24_001).requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = gelu.activation(x), torch.nn.functional.gelu(exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)
    (slope,), (exact_slope,) = (torch.autograd.grad(y.sum(), at) for y, at in ((ours, x), (theirs, exact)))
    torch.testing.assert_close(slope.double(), exact_slope, rtol=0, atol=1e-6)
    assert gelu.activation(x.bfloat16()).dtype == torch.bfloat16


def test_relu_squared_in_bf16_and_its_gradient_are_those_in_float32():
    x = torch.linspace(-8, 8, 1_001).bfloat16().requires_grad_()
    exact = x.detach().float().requires_grad_()
    module = ReLUSquared(6, 20)
    with torch.autocast("cpu", torch.bfloat16):
        low = module.activation(x)
    assert low.dtype == torch.bfloat16
    high = module.activation(exact)
    torch.testing.assert_close(low.float(), high, rtol=2**-8, atol=0)
    (slope,), (exact_slope,) = (torch.autograd.grad((y * y.detach()).sum(), at) for y, at in ((low, x), (high, exact)))
    torch.testing.assert_close(slope.float(), exact_slope, rtol=2**-6, atol=0)


@pytest.mark.parametrize(("feedforward", "activation"), GATED)
def test_gated_feedforward_multiplies_up_by_the_activated_gate(feedforward, activation):
    torch.manual_seed(0)
    module = feedforward(6, 20).double()
    x = 3 * torch.randn(2, 5, 6, dtype=torch.float64)
    hidden = elementwise(activation, linear(module.gate, x)) * linear(module.up, x)
    torch.testing.assert_close(module(x), linear(module.down, hidden), rtol=0, atol=1e-9)


@pytest.mark.parametrize("feedforward", [ReLU, SwiGLU])
def test_dropout_drops_hidden_units_in_training_only(feedforward):
    module = feedforward(6, 20, dropout=1.0)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(module.train()(x), module.down.bias.expand(2, 5, 6))
    undropped = feedforward(6, 20)
    undropped.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.eval()(x), undropped(x))


@pytest.mark.parametrize(("feedforward", "matrices"), [(GELU, 2), (GeGLU, 3)])
def test_bias_false_leaves_only_matrices(feedforward, matrices):
    assert [p.numel() for p in feedforward(6, 20, bias=False).parameters()] == matrices * [6 * 20]
