"""Muon against torch.optim.Muon, and each of its options against the method's formulas, written out in float64."""

import copy
import math

import pytest
import torch
from small_gpt import assert_same_weights, saved, tiny, train
from torch import nn

from bytelm.optim import Muon, ParamGroup, muon, param_groups
from bytelm.optim.newton_schulz import iterations

SHAPES = [(8, 8), (40, 16), (16, 40), (1, 7), (7, 1), (40, 16), (64, 96)]
HEADS = [[4, 4], [2], [2]]


def matrices(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)


def steps(params, optimizer, n=4, first=0):
    for step in range(first, first + n):
        give_gradients(params, step)
        optimizer.step()


@pytest.fixture
def in_float64(monkeypatch):
    """Iterations in float64, so that a step is its formula to rounding."""
    monkeypatch.setattr(muon, "PRECISION", torch.float64)


# Defaults


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "weight_decay": 0.0},
        {"adjust_lr_fn": "match_rms_adamw", "lr": 0.01},
        {"ns_steps": 3, "momentum": 0.8},
        {"ns_coefficients": (1.5, -0.5, 0.0)},
    ],
    ids=str,
)
def test_without_its_own_options_it_is_torchs_to_the_bit(options):
    ours, theirs = matrices(*SHAPES), matrices(*SHAPES)
    steps(ours, Muon(ours, **options))
    steps(theirs, torch.optim.Muon(theirs, **options))
    for start, one, other in zip(matrices(*SHAPES), ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


def test_a_state_of_torchs_resumes_exactly():
    ours, theirs = matrices(*SHAPES), matrices(*SHAPES)
    former = torch.optim.Muon(theirs, lr=0.05)
    steps(theirs, former)
    optimizer = Muon(ours, variance_reduction=True, cautious_weight_decay=True)  # the state brings its own options
    optimizer.load_state_dict(saved(former))
    for one, other in zip(ours, theirs, strict=True):
        one.data.copy_(other)
    steps(ours, optimizer, first=4)
    steps(theirs, former, first=4)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_parameters_without_gradients_stay():
    params = matrices((4, 4), (4, 4))
    optimizer = Muon(params)
    give_gradients(params[:1], 0)
    optimizer.step()
    start = matrices((4, 4), (4, 4))
    assert [torch.equal(param, before) for param, before in zip(params, start, strict=True)] == [False, True]
    assert list(optimizer.state) == params[:1]


# Steps


def reference(weights, grads, options):
    """Steps of one matrix by the formulas: `grads` are its gradients, one a step."""
    options = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "beta2": 0.95} | options
    w = weights.detach().double().clone()
    lr, m = options["lr"], options["momentum"]
    schedule, scale = iterations(options.get("ns_coefficients", "quintic"), 5)
    across = options.get("variance_reduction") == "longer" and w.shape[1] > w.shape[0]  # columns in place of rows
    buffer, second = torch.zeros_like(w), 0
    for grad in grads:
        buffer = m * buffer + (1 - m) * grad
        update = (1 - m) * grad + m * buffer if options["nesterov"] else buffer
        x = update / (scale * update.norm())
        for a, b, c in schedule:
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        if options.get("variance_reduction"):
            mean = (x**2).mean(dim=0 if across else 1, keepdim=True)
            second = options["beta2"] * second + (1 - options["beta2"]) * mean
            rows = x / second.sqrt()
            x = rows * x.norm() / rows.norm()
        decays = torch.ones_like(w)
        if options.get("cautious_weight_decay"):
            decays = (x.sign() == w.sign()).double()
        ratio = math.sqrt(max(1, w.shape[0] / w.shape[1]))
        if options.get("adjust_lr_fn") == "match_rms_adamw":
            ratio = 0.2 * math.sqrt(max(w.shape))
        decay = lr * options["weight_decay"] * (ratio if options.get("adjust_weight_decay") else 1)
        w = w - decay * decays * w - lr * ratio * x
    return w


OPTIONS = [
    {},
    {"ns_coefficients": "polar_express"},
    {"variance_reduction": True},
    {"variance_reduction": True, "beta2": 0.5, "adjust_lr_fn": "match_rms_adamw"},
    {"cautious_weight_decay": True, "weight_decay": 5.0},
    {"variance_reduction": True, "cautious_weight_decay": True, "nesterov": False, "weight_decay": 3.0},
    {"variance_reduction": "longer", "adjust_weight_decay": True, "cautious_weight_decay": True, "weight_decay": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_each_option_is_its_formula(in_float64, options, batched):
    options = {"lr": 0.02, **options}
    shapes = [(12, 20), (12, 20), (20, 12), (9, 9)]
    params, start = matrices(*shapes, dtype=torch.float64), matrices(*shapes, dtype=torch.float64)
    grads = [[] for _ in params]
    optimizer = Muon(params, batched=batched, **options)
    for step in range(4):
        give_gradients(params, step)
        for param, before in zip(params, grads, strict=True):
            before.append(param.grad)
        optimizer.step()
    for param, weights, its_grads in zip(params, start, grads, strict=True):
        torch.testing.assert_close(param.detach(), reference(weights, its_grads, options), atol=1e-12, rtol=0)


def test_variance_reduction_keeps_the_norm_and_levels_the_rows(in_float64):
    params = matrices((16, 24), dtype=torch.float64)
    start = params[0].detach().clone()
    optimizer = Muon(params, lr=1.0, weight_decay=0.0, variance_reduction=True)
    plain = matrices((16, 24), dtype=torch.float64)
    steps(params, optimizer, n=1)
    steps(plain, Muon(plain, lr=1.0, weight_decay=0.0), n=1)
    leveled, direction = params[0] - start, plain[0] - start
    assert leveled.norm().item() == pytest.approx(direction.norm().item(), rel=1e-12)
    norms = leveled.norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(16), rtol=1e-9, atol=0)
    assert direction.norm(dim=1).std() > 0.01


def test_cautious_decay_shrinks_only_what_the_step_shrinks():
    params, plain = matrices((12, 20)), matrices((12, 20))
    start = params[0].detach().clone()
    steps(params, Muon(params, lr=0.1, weight_decay=1.0, cautious_weight_decay=True), n=1)
    steps(plain, Muon(plain, lr=0.1, weight_decay=0.0), n=1)
    direction = start - plain[0]
    shrinks = direction.sign() == start.sign()
    assert 0.2 < shrinks.float().mean() < 0.8
    expected = torch.where(shrinks, plain[0] - 0.1 * start, plain[0])
    torch.testing.assert_close(params[0], expected)


# Fused matrices and stacks


def fused(params, **options):
    return Muon([ParamGroup({"name": "hidden", "params": params}, {0: HEADS})], **options)


def parts(param, split):
    """Copies of the matrices that a fused one consists of."""
    sizes = [sum(heads) for heads in HEADS] if split is True else [size for heads in HEADS for size in heads]
    return [nn.Parameter(part.detach().clone()) for part in param.split(sizes)]


@pytest.mark.parametrize("split", [True, "heads"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_divided_matrix_is_trained_as_its_parts_are(in_float64, split, options):
    # The other one is not divided. Some parts have more rows than columns.
    whole, other = matrices((12, 5), (12, 5), dtype=torch.float64)
    apart, alone = parts(whole, split), copy.deepcopy(other)
    optimizers = fused([whole, other], split_qkv=split, **options), Muon([*apart, alone], **options)
    for step in range(3):
        give_gradients([whole, other], step)
        alone.grad = other.grad
        for part, grad in zip(apart, whole.grad.split([len(part) for part in apart]), strict=True):
            part.grad = grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(whole, torch.cat(apart), atol=1e-12, rtol=0)
    torch.testing.assert_close(other, alone, atol=1e-12, rtol=0)


def test_parts_are_those_of_torchs_muon():
    (whole,) = matrices((12, 10))
    apart = parts(whole, True)
    steps([whole], fused([whole], split_qkv=True), n=1)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(12, 10, generator=generator, dtype=torch.float64).float()
    for part, its_grad in zip(apart, grad.split([8, 2, 2]), strict=True):
        part.grad = its_grad
    torch.optim.Muon(apart).step()
    torch.testing.assert_close(whole, torch.cat(apart))


def test_undivided_is_the_default():
    one, other = matrices((12, 10)), matrices((12, 10))
    steps(one, fused(one))
    steps(other, torch.optim.Muon(other))
    assert torch.equal(one[0], other[0])


def test_a_networks_queries_keys_and_values_are_trained_apart():
    gpt = tiny(n_layers=1)
    start = copy.deepcopy(gpt)
    groups = [group for group in param_groups(gpt) if group["name"] == "hidden"]
    optimizer = Muon(groups, lr=1.0, weight_decay=0.0, ns_steps=12, ns_coefficients="polar_express", split_qkv=True)
    train(gpt, optimizer, [0])
    direction = gpt.blocks[0].attention.qkv.weight - start.blocks[0].attention.qkv.weight
    for part in direction.split(16):
        torch.testing.assert_close(part @ part.T, torch.eye(16), atol=0.1, rtol=0)


def test_a_stack_is_trained_as_its_matrices_are():
    (stack,) = matrices((3, 20, 12))
    apart = [nn.Parameter(matrix.detach().clone()) for matrix in stack]
    optimizer, same = Muon([stack]), torch.optim.Muon(apart)
    for step in range(3):
        give_gradients([stack], step)
        for matrix, grad in zip(apart, stack.grad, strict=True):
            matrix.grad = grad
        optimizer.step()
        same.step()
    assert torch.equal(stack, torch.stack([*apart]))


@pytest.mark.parametrize("limit", [1, 12 * 20, 2**27])
def test_how_many_are_orthogonalised_at_once_changes_nothing(in_float64, monkeypatch, limit):
    monkeypatch.setattr(muon, "MOST_AT_ONCE", limit)
    params, twins = matrices(*[(12, 20)] * 5, dtype=torch.float64), matrices(*[(12, 20)] * 5, dtype=torch.float64)
    steps(params, Muon(params, batched=True))
    steps(twins, Muon(twins, batched=False))
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, atol=1e-13, rtol=0)


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_from_its_state_to_the_bit(dtype):
    options = {"variance_reduction": True, "split_qkv": "heads", "cautious_weight_decay": True, "lr": 0.05}
    gpt = tiny().to(dtype)
    optimizer = Muon([param_groups(gpt)[0]], **options)
    train(gpt, optimizer, range(3))
    resumed = copy.deepcopy(gpt)
    other = Muon([param_groups(resumed)[0]])  # the state brings its own options
    other.load_state_dict(saved(optimizer))
    assert {state["second_moment"].dtype for state in other.state.values()} == {torch.float32}
    train(gpt, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert_same_weights(gpt, resumed)


def test_a_copy_knows_how_matrices_divide():
    (param,) = matrices((12, 10))
    copied = copy.deepcopy(fused([param], split_qkv=True))
    (twin,) = copied.param_groups[0]["params"]
    steps([param], fused([param], split_qkv=True), n=1)
    steps([twin], copied, n=1)
    assert torch.equal(param, twin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: -1.0 cannot be used; accepted: 0 or more"),
        ({"weight_decay": math.nan}, "weight_decay: nan"),
        ({"momentum": -0.1}, "momentum: -0.1"),
        ({"beta2": 1.0}, "beta2: 1.0 cannot be used; accepted: from 0 to below 1"),
        ({"ns_steps": 0}, "ns_steps: 0 cannot be used; accepted: from 1"),
        ({"adjust_lr_fn": "own"}, "adjust_lr_fn: 'own' cannot be used; accepted: original, match_rms_adamw"),
        ({"variance_reduction": "own"}, "variance_reduction: 'own' cannot be used; accepted: false, true, longer"),
        ({"ns_coefficients": "own"}, "ns_coefficients: 'own' cannot be used; accepted: quintic, polar_express, or"),
        ({"split_qkv": True}, "split_qkv: True cannot be used; accepted: false, because no module declares"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Muon(matrices((2, 2)), **options)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2, 2)])
def test_parameters_that_are_no_matrices_are_rejected(shape):
    with pytest.raises(ValueError, match="Muon needs matrices or stacks of matrices"):
        Muon([nn.Parameter(torch.zeros(shape))])
