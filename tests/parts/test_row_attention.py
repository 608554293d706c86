"""RowAttention's kernel, and that of ReLUSquared, compute the same as the operators."""

import functools
import shutil
import sys

import pytest
import torch
from torch import nn

from bytelm.kernels import relu_squared, row_attention
from bytelm.parts.attention import MatmulAttention, RowAttention
from bytelm.parts.contract import Context
from bytelm.parts.feedforward import _ReLUSquared
from bytelm.parts.norm import RMSNorm
from bytelm.parts.position import ALiBi, Rotary

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the kernels are built by g++"),
    pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux"),
]


def attended(make, seq_len, n_heads, dtype=torch.float32, position=Rotary, change=None):
    """Output of an attention, and the gradients of its input and weights."""
    torch.manual_seed(0)
    attention = make(64, n_heads, bias=False)
    nn.init.normal_(attention.out.weight, std=0.1)
    x, weights = torch.randn(3, seq_len, 64), torch.randn(3, seq_len, 64)
    if change is not None:
        x = change(x)
    x.requires_grad_()
    context = Context(torch.zeros(3, seq_len, dtype=torch.long), position(64, n_heads, seq_len), 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attention(x, context)
    return out.float(), *torch.autograd.grad((out * weights).sum(), [x, *attention.parameters()])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("seq_len", "n_heads"), [(32, 1), (96, 2), (160, 1)])
def test_equal_to_operators(seq_len, n_heads, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    calls = []
    monkeypatch.setattr(row_attention, "call", lambda *arguments: calls.append(arguments[1]) or call(*arguments))
    own = attended(RowAttention, seq_len, n_heads)
    assert calls == ["attend", "attend_backward"]
    for one, other in zip(own, attended(MatmulAttention, seq_len, n_heads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


call = row_attention.call


@pytest.mark.parametrize("seq_len", [64, 160])
def test_bf16_is_closer_to_float32_than_operators_in_bf16(seq_len):
    exact = attended(MatmulAttention, seq_len, 2)
    own, other = (attended(make, seq_len, 2, torch.bfloat16) for make in (RowAttention, MatmulAttention))
    for one, two, right in zip(own, other, exact, strict=True):
        assert (one - right).norm() < (two - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("t", [1, 31, 32, 70])
def test_causal(t):
    def later(x):
        return torch.cat([x[:, :t], 1e4 * x[:, t:].flip(0)], dim=1)

    before, after = attended(RowAttention, 96, 2)[0], attended(RowAttention, 96, 2, change=later)[0]
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t:], after[:, t:])


@pytest.mark.parametrize(
    "options",
    [
        {"seq_len": 33, "n_heads": 2},
        {"seq_len": 32, "n_heads": 4},  # heads of 16
        {"seq_len": 32, "n_heads": 2, "position": ALiBi},
        {"seq_len": 32, "n_heads": 2, "n_kv_heads": 1},
        {"seq_len": 32, "n_heads": 2, "qk_norm": RMSNorm},
    ],
    ids=["length", "head", "position", "groups", "norm"],
)
def test_operators_compute_the_rest(options, monkeypatch):
    monkeypatch.setattr(row_attention, "call", lambda *arguments: pytest.fail("the kernel cannot do this"))
    sizes = {key: options.pop(key) for key in ("seq_len", "n_heads", "position") if key in options}
    own, other = (attended(functools.partial(make, **options), **sizes) for make in (RowAttention, MatmulAttention))
    assert all(torch.equal(one, two) for one, two in zip(own, other, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_relu_squared(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    x, weights = torch.randn(2, 7, 4_099).bfloat16(), torch.randn(2, 7, 4_099).bfloat16()

    def computed(function):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        return out, *torch.autograd.grad(out, leaf, weights)

    for one, other in zip(computed(relu_squared.relu_squared), computed(_ReLUSquared.apply), strict=True):
        assert torch.equal(one, other)
