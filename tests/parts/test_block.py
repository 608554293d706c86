"""Block orders against their formulas, with stand-ins for attention, feed-forward and norms that do not commute."""

import pytest
import torch
from torch import nn

from bytelm.parts.block import Parallel, PostNorm, PreNorm


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def attention(x, position):
    return torch.sin(2 * x) + position


def feedforward(x):
    return x.square()


def first_norm(x):
    return 3 * x + 1


def second_norm(x):
    return torch.tanh(x)


def build(block, dropout=0.0):
    norms = iter([Function(first_norm), Function(second_norm)])
    return block(Function(attention), Function(feedforward), lambda: next(norms), dropout)


def pre_norm(x, position):
    middle = x + attention(first_norm(x), position)
    return middle + feedforward(second_norm(middle))


def post_norm(x, position):
    middle = first_norm(x + attention(x, position))
    return second_norm(middle + feedforward(middle))


def parallel(x, position):
    return x + attention(first_norm(x), position) + feedforward(second_norm(x))


@pytest.mark.parametrize(("block", "formula"), [(PreNorm, pre_norm), (PostNorm, post_norm), (Parallel, parallel)])
def test_block_is_its_formula(block, formula):
    x, position = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(build(block)(x, position), formula(x, position))


@pytest.mark.parametrize(
    ("block", "without_branches"),
    [(PreNorm, lambda x: x), (PostNorm, lambda x: second_norm(first_norm(x))), (Parallel, lambda x: x)],
)
def test_dropout_drops_what_branches_add_in_training_only(block, without_branches):
    x, position = torch.randn(2, 2, 5, 6)
    dropped = build(block, dropout=1.0)
    torch.testing.assert_close(dropped(x, position), without_branches(x))
    torch.testing.assert_close(dropped.eval()(x, position), build(block)(x, position))
