"""ByGroup equals its optimizers side by side exactly: steps, state, copies, gradient scalers; and its rejections."""

import copy
import sys
import warnings
from functools import partial

import pytest
import torch
from lion_pytorch import Lion
from small_gpt import N_GRAMS, assert_same_weights, assert_trained_alike, backward, saved, tiny, train
from torch import nn
from torch.optim import LBFGS, SGD, Adafactor, AdamW, NAdam, SparseAdam

from bytelm.errors import CheckpointError
from bytelm.optim import ByGroup, Muon, RowAdagrad, param_groups


class Counting(torch.optim.Optimizer):
    """A user's optimizer: state of its own beside that of parameters, and more in its state_dict."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.seen = 0

    def state_dict(self):
        return {**super().state_dict(), "seen": self.seen}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure=None):
        self.seen += 1
        total = self.state.get("total", 0)
        self.state["total"] = total + 1
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["age"] = torch.tensor(float(self.seen))
                param.sub_(group["lr"] * param.grad.sign() / (self.seen + self.state["total"]))


GROUPS = {
    "hidden": partial(Muon, lr=0.05, variance_reduction=True),
    "embedding": partial(AdamW, lr=0.01, amsgrad=True),
    "head": partial(Lion, lr=0.003, weight_decay=0.5),
    "table": partial(RowAdagrad, lr=0.2),
}
DEFAULT = partial(Counting, lr=0.01)


def full(**options):
    return tiny(embedding=N_GRAMS, tie_embeddings=False, **options)


def by_group(gpt, groups=GROUPS, default=DEFAULT):
    return ByGroup(param_groups(gpt), groups, default)


def test_it_is_its_optimizers_to_the_bit():
    gpt, twin = full(), full()
    optimizer = by_group(gpt)
    others = [GROUPS.get(group["name"], DEFAULT)([group]) for group in param_groups(twin)]
    assert_trained_alike(gpt, [optimizer], twin, others, start=full())


def test_its_groups_are_the_networks_each_with_its_optimizers_options():
    gpt = full()
    optimizer = by_group(gpt)
    assert [(group["name"], group["optimizer"], group["lr"]) for group in optimizer.param_groups] == [
        ("hidden", "Muon", 0.05),
        ("embedding", "AdamW", 0.01),
        ("head", "Lion", 0.003),
        ("vector", "Counting", 0.01),
        ("table", "RowAdagrad", 0.2),
    ]
    for group, given in zip(optimizer.param_groups, param_groups(gpt), strict=True):
        assert list(map(id, group["params"])) == list(map(id, given["params"]))
        assert group.get("weight_decay", 0.0) == given.get("weight_decay", group.get("weight_decay", 0.0))
    assert (optimizer.param_groups[1]["amsgrad"], optimizer.param_groups[2]["betas"]) == (True, (0.9, 0.99))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_from_its_state_to_the_bit(dtype):
    gpt = full().to(dtype)
    optimizer = by_group(gpt)
    train(gpt, optimizer, range(3))
    resumed = copy.deepcopy(gpt)
    other = by_group(resumed, {**GROUPS, "hidden": Muon})  # the state brings its own options
    other.load_state_dict(saved(optimizer))
    for group in other.param_groups:
        group["lr"] *= 0.5
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    train(gpt, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert_same_weights(gpt, resumed)
    assert other.param_groups[0]["variance_reduction"]
    assert saved(other)["param_groups"] == saved(optimizer)["param_groups"]


def test_its_state_has_the_form_of_a_single_optimizers():
    gpt, twin = tiny(), tiny()
    optimizer, plain = ByGroup(param_groups(gpt), {}, AdamW), AdamW(param_groups(twin))
    for network, its_optimizer in ((gpt, optimizer), (twin, plain)):
        train(network, its_optimizer, range(2))
    ours, theirs = saved(optimizer), saved(plain)
    assert list(ours["state"]) == list(theirs["state"])
    for key, state in theirs["state"].items():
        assert all(torch.equal(value, ours["state"][key][name]) for name, value in state.items())
    for group in ours["param_groups"]:
        assert group.pop("optimizer") == "AdamW"
    assert ours["param_groups"] == theirs["param_groups"]


def test_state_is_looked_up_by_parameter():
    gpt = full()
    optimizer = by_group(gpt)
    assert not optimizer.state
    assert gpt.head.weight not in optimizer.state
    train(gpt, optimizer, [0])
    assert len(optimizer.state) == len([*gpt.parameters()])
    assert {id(param) for param in optimizer.state} == {id(param) for param in gpt.parameters()}
    assert set(optimizer.state[gpt.head.weight]) == {"exp_avg"}
    optimizer.state[gpt.head.weight] = {"exp_avg": torch.zeros_like(gpt.head.weight)}  # as Lightning moves it
    before = gpt.head.weight.detach().clone()
    backward(gpt, 1)
    optimizer.step()
    decayed = before * (1 - 0.003 * 0.5)
    torch.testing.assert_close(gpt.head.weight, decayed - 0.003 * gpt.head.weight.grad.sign())
    del optimizer.state[gpt.head.weight]
    assert gpt.head.weight not in optimizer.state


def test_it_evaluates_its_closure_once_and_returns_the_loss():
    gpt, twin = full(), full()
    optimizer, same = by_group(gpt), by_group(twin)
    losses = []

    def closure():
        losses.append(backward(gpt, step=0))
        return losses[-1]

    assert optimizer.step(closure) is losses[0]
    assert len(losses) == 1
    train(twin, same, [0])
    assert_same_weights(gpt, twin)


def test_a_copy_trains_its_own_parameters():
    gpt = full()
    optimizer = by_group(gpt, {**GROUPS, "head": SGD}, NAdam)  # Lion's copies lack its options
    train(gpt, optimizer, range(2))
    twin, copied = copy.deepcopy((gpt, optimizer), {})
    before = copy.deepcopy(gpt)
    copied.param_groups[0]["lr"] = 0.0
    backward(twin, 2)
    copied.step()
    assert_same_weights(gpt, before)
    for group, given in zip(copied.param_groups, param_groups(twin), strict=True):
        assert list(map(id, group["params"])) == list(map(id, given["params"]))
    stepped = {name for name, p in twin.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert "head.weight" in stepped
    assert "blocks.0.attention.qkv.weight" not in stepped  # whose rate is 0
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_hooks_see_its_state():
    gpt = tiny()
    optimizer = ByGroup(param_groups(gpt), {}, AdamW)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append(state.pop("extra")))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("after"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("step"))
    optimizer.load_state_dict(optimizer.state_dict())
    train(gpt, optimizer, [0])
    assert seen == ["before", 1, "after", "step"]


def test_no_groups_are_added_later():
    optimizer = ByGroup(param_groups(tiny()), {}, SGD)
    with pytest.raises(RuntimeError, match="ByGroup accepts parameter groups only in its constructor"):
        optimizer.add_param_group({"name": "late", "params": [nn.Parameter(torch.ones(2))]})


# Kernels and gradient scalers


@pytest.mark.parametrize("kernel", ["fused", "foreach"])
def test_fused_and_foreach_kernels_are_used(kernel, monkeypatch):
    called = []
    module = sys.modules["torch.optim.adam"]
    original = getattr(module, f"_{kernel.replace('foreach', 'multi_tensor')}_adam")
    name = original.__name__
    monkeypatch.setattr(module, name, lambda *args, **kwargs: [called.append(len(args[0])), original(*args, **kwargs)])
    gpt = tiny()
    optimizer = ByGroup(param_groups(gpt), {"hidden": Muon}, partial(AdamW, **{kernel: True}))
    train(gpt, optimizer, [0])
    assert called == [len(group["params"]) for group in param_groups(gpt)[1:]]


FUSED = partial(AdamW, fused=True, lr=0.01)


@pytest.mark.parametrize(
    ("groups", "unscales"), [({}, True), ({"hidden": Muon}, False), ({"embedding": AdamW}, False)], ids=str
)
@pytest.mark.parametrize("clip", [False, True])
def test_under_a_gradient_scaler_it_takes_the_steps_it_takes_without(groups, unscales, clip):
    gpt, twin = tiny(), tiny()
    optimizer, plain = (ByGroup(param_groups(network), groups, FUSED) for network in (gpt, twin))
    assert getattr(optimizer, "_step_supports_amp_scaling", False) is unscales
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        for network in (gpt, twin):
            network.zero_grad()
            tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(step))
            loss = nn.functional.cross_entropy(network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            (scaler.scale(loss) if network is gpt else loss).backward()
        if step == 2:  # a step that overflows is left out
            gpt.embedding.weight.grad[0, 0] = torch.inf
        if clip:
            scaler.unscale_(optimizer)
            for network in (gpt, twin):
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        if step != 2:
            plain.step()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(dict(gpt.named_parameters()), dict(twin.named_parameters()), rtol=1e-4, atol=1e-6)
    assert scaler.get_scale() == 2.0**9
    assert not hasattr(optimizer, "grad_scale")


# Rejected


@pytest.mark.parametrize(
    ("groups", "default", "message"),
    [
        ({"hiden": SGD}, SGD, r"groups\.hiden: the network has no such group; accepted: hidden, embedding, vector"),
        ({"hidden": SGD}, None, r"groups\.embedding: the network's group embedding has no optimizer; name one there"),
        ({"vector": Muon}, SGD, r"group vector: Muon needs matrices"),
        ({"hidden": partial(Muon, momentum=-1.0)}, SGD, r"group hidden: momentum: -1\.0"),
        ({"hidden": partial(Lion, lr=-1.0)}, SGD, r"group hidden: the optimizer rejects its options"),
        ({"vector": LBFGS}, SGD, r"group vector: LBFGS evaluates the loss several times a step"),
    ],
    ids=str,
)
def test_invalid_settings_are_rejected(groups, default, message):
    with pytest.raises(ValueError, match=message):
        ByGroup(param_groups(tiny()), groups, default)


def test_a_default_without_a_group_is_noted():
    groups = {"hidden": SGD, "vector": SGD}
    (note,) = ByGroup.without_effect({"groups": groups, "default": SGD}, {"hidden", "vector"})
    assert note == "default has no effect, because each group of the network has its own optimizer"
    assert not [*ByGroup.without_effect({"groups": groups, "default": SGD}, {"hidden", "vector", "embedding"})]
    assert not [*ByGroup.without_effect({"groups": groups}, {"hidden", "vector"})]


def test_a_state_of_other_groups_or_another_optimizer_is_rejected():
    state = ByGroup(param_groups(tiny()), {"hidden": Muon}, AdamW).state_dict()
    with pytest.raises(CheckpointError) as error:
        ByGroup(param_groups(tiny(tie_embeddings=False)), {"hidden": Muon}, AdamW).load_state_dict(state)
    assert str(error.value) == (
        "ckpt_path: the optimizer's state has other parameter groups: hidden (8), embedding (2), vector (18) in the "
        "checkpoint, hidden (8), embedding (2), head (1), vector (18) now"
    )
    with pytest.raises(CheckpointError, match="the optimizer of group hidden is Muon in the checkpoint, AdamW now"):
        ByGroup(param_groups(tiny()), {}, AdamW).load_state_dict(state)


@pytest.mark.parametrize("optimizer", [AdamW, NAdam, SGD, Adafactor, Lion, Muon, RowAdagrad, SparseAdam])
def test_optimizers_of_any_origin_are_taken(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = ByGroup(param_groups(nn.Linear(2, 2, bias=False)), {"embedding": optimizer})
    assert [group["optimizer"] for group in made.param_groups] == [optimizer.__name__]
