"""Block orders against their formulas, with stand-ins for attention, feed-forward and norms that do not commute."""

import functools

import pytest
import torch
from contexts import context
from torch import nn

from bytelm.parts.block import Parallel, ParallelSharedNorm, PostNorm, PreNorm
from bytelm.parts.residual_scalars import ScaledPreNorm


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def attention(x, context):
    return torch.sin(2 * x) + context.first


def feedforward(x, context):
    return x.square() - context.first


def first_norm(x):
    return 3 * x + 1


def second_norm(x):
    return torch.tanh(x)


def build(block, dropout=0.0):
    norms = iter([Function(first_norm), Function(second_norm)])
    return block(Function(attention), Function(feedforward), lambda: next(norms), dropout)


def pre_norm(x, context):
    middle = x + attention(first_norm(x), context)
    return middle + feedforward(second_norm(middle), context)


def post_norm(x, context):
    middle = first_norm(x + attention(x, context))
    return second_norm(middle + feedforward(middle, context))


def parallel(x, context):
    return x + attention(first_norm(x), context) + feedforward(second_norm(x), context)


def parallel_shared_norm(x, context):
    return x + attention(first_norm(x), context) + feedforward(first_norm(x), context)


def scaled_pre_norm(x, context):
    return pre_norm(0.75 * x + 0.375 * context.first, context)


@pytest.mark.parametrize(
    ("block", "formula"),
    [
        (PreNorm, pre_norm),
        (PostNorm, post_norm),
        (Parallel, parallel),
        (ParallelSharedNorm, parallel_shared_norm),
        (functools.partial(ScaledPreNorm, stream=0.75, first=0.375), scaled_pre_norm),
    ],
)
def test_block_is_its_formula(block, formula):
    x, first = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    around = context(first=first)
    torch.testing.assert_close(build(block)(x, around), formula(x, around))


@pytest.mark.parametrize(
    ("block", "without_branches"),
    [
        (PreNorm, lambda x: x),
        (PostNorm, lambda x: second_norm(first_norm(x))),
        (Parallel, lambda x: x),
        (ParallelSharedNorm, lambda x: x),
    ],
)
def test_dropout_applies_to_branches_in_training_only(block, without_branches):
    x, first = torch.randn(2, 2, 5, 6)
    around = context(first=first)
    dropped = build(block, dropout=1.0)
    torch.testing.assert_close(dropped(x, around), without_branches(x))
    torch.testing.assert_close(dropped.eval()(x, around), build(block)(x, around))
