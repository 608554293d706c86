"""RowAdagrad against the formula written out row by row; sparse and dense gradients, duplicates, its saved state."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from bytelm.optim import AdamW, Lion, MuonAdamW, takes_sparse_gradients
from bytelm.optim.row_adagrad import RowAdagrad

ROWS, DIM = 12, 8


def lookups(step):
    """Rows looked up in a step, some of them twice and the last four never, and the gradient of each look-up."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.cat([torch.tensor([3, 5, 3]), torch.randint(ROWS - 4, (6,), generator=generator)])
    return rows, torch.randn(len(rows), DIM, generator=generator)


def table(dtype=torch.float32):
    return nn.Parameter(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(7)).to(dtype))


def train(table, optimizer, steps, sparse=True):
    for step in steps:
        rows, grads = lookups(step)
        optimizer.zero_grad()
        nn.functional.embedding(rows, table, sparse=sparse).backward(grads.to(table.dtype))
        assert table.grad.is_sparse == sparse
        optimizer.step()


def reference(table, steps, lr, eps):
    """The formula in Python's own numbers."""
    values, sums = table.tolist(), [0.0] * ROWS
    for step in steps:
        rows, grads = lookups(step)
        for row in set(rows.tolist()):
            grad = [sum(column) for column in zip(*grads[rows == row].tolist(), strict=True)]
            sums[row] += sum(g * g for g in grad) / DIM
            values[row] = [v - lr * g / (math.sqrt(sums[row]) + eps) for v, g in zip(values[row], grad, strict=True)]
    return torch.tensor(values), torch.tensor(sums)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("options", [{}, {"lr": 0.5, "eps": 0.3}], ids=str)
def test_each_row_follows_the_formula(sparse, options):
    weights = table()
    values, sums = reference(weights.detach(), range(5), **{"lr": 0.1, "eps": 1e-10} | options)
    optimizer = RowAdagrad([weights], **options)
    train(weights, optimizer, range(5), sparse)
    torch.testing.assert_close(weights.detach(), values)
    torch.testing.assert_close(optimizer.state[weights]["sum"], sums)


def test_sparse_and_dense_gradients_give_the_same_bits():
    results = []
    for sparse in (True, False):
        weights = table()
        optimizer = RowAdagrad([weights])
        train(weights, optimizer, range(20), sparse)
        results.append((weights, optimizer.state[weights]["sum"]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_that_were_not_looked_up_stay_as_they_are(sparse):
    weights = table()
    optimizer = RowAdagrad([weights])
    train(weights, optimizer, range(3), sparse)
    assert torch.equal(weights[-4:], table()[-4:])
    assert optimizer.state[weights]["sum"][-4:].tolist() == [0.0] * 4
    looked_up = torch.cat([lookups(step)[0] for step in range(3)]).unique()
    assert (weights != table()).all(dim=1).nonzero().flatten().tolist() == looked_up.tolist()


def test_gradients_of_several_batches_add_up():
    together, apart = table(), table()
    rows, grads = lookups(0)
    for weights, parts in ((together, [slice(None)]), (apart, [slice(4), slice(4, None)])):
        for part in parts:
            nn.functional.embedding(rows[part], weights, sparse=True).backward(grads[part])
        RowAdagrad([weights]).step()
    assert torch.equal(together, apart)


def test_nothing_looked_up_changes_nothing():
    weights = table()
    optimizer = RowAdagrad([weights])
    optimizer.step()
    assert not optimizer.state
    nn.functional.embedding(torch.tensor([], dtype=torch.long), weights, sparse=True).sum().backward()
    optimizer.step()
    assert torch.equal(weights, table())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_from_its_saved_state_to_the_bit(dtype):
    weights = table(dtype)
    optimizer = RowAdagrad([weights], lr=0.3)
    train(weights, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(weights)
    other = RowAdagrad([resumed])  # the state brings its own options
    other.load_state_dict(torch.load(file, weights_only=True))
    train(weights, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert torch.equal(weights, resumed)
    sums = other.state[resumed]["sum"]
    assert (sums.dtype, sums.shape) == (torch.float32, (ROWS,))
    assert torch.equal(sums, optimizer.state[weights]["sum"])


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"lr": -1.0}, (2, 2), "lr: -1.0"),
        ({"eps": 0.0}, (2, 2), "eps: 0.0"),
        ({}, (2,), "with 2 dimensions; a parameter has 1"),
    ],
)
def test_invalid_settings_are_rejected(options, shape, message):
    with pytest.raises(ValueError, match=message):
        RowAdagrad([nn.Parameter(torch.zeros(shape))], **options)


def test_takes_sparse_gradients_tells_which_optimizers_do():
    optimizers = (RowAdagrad, MuonAdamW, torch.optim.SparseAdam, torch.optim.SGD, AdamW, torch.optim.Adam)
    assert [takes_sparse_gradients(optimizer) for optimizer in optimizers] == [True, True, True, True, False, False]
    assert takes_sparse_gradients(Lion)
