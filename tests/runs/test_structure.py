"""Saved states are compared with those of the objects that they belong to."""

import pytest
import torch
from torch import nn

from bytelm.optim import Lion, Muon, RowAdagrad
from bytelm.runs.archive import Layout
from bytelm.runs.structure import BadStructure, check_config, check_contents, check_like, check_optimizer_state

LIKE = {"count": 0, "seconds": 0.0, "name": "a", "on": True, "best": None, "times": [], "pair": (1, None)}
LIKE |= {"ranks": [{"state": torch.zeros(3, dtype=torch.uint8)}]}


@pytest.mark.parametrize(
    "state",
    [
        {},
        LIKE,
        {"count": 10**15, "seconds": 3, "best": 2.5, "times": [1.0, 2], "pair": (7, 1.5)},
        {"best": "text", "added": {"a": [1, None, "b"]}},
        {"ranks": [{"state": torch.ones(3, dtype=torch.uint8)}, {"state": Layout((3,), torch.uint8)}]},
    ],
)
def test_states_of_the_same_kinds_are_accepted(state):
    check_like(state, LIKE, "callbacks.A")


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ([], ""),
        ({"count": 1.5}, ".count"),
        ({"count": -1}, ".count"),
        ({"count": True}, ".count"),
        ({"count": 10**16}, ".count"),
        ({"seconds": float("inf")}, ".seconds"),
        ({"seconds": "1"}, ".seconds"),
        ({"name": None}, ".name"),
        ({"on": 1}, ".on"),
        ({"best": torch.ones(1)}, ".best"),
        ({"times": (1.0,)}, ".times"),
        ({"times": ["a"]}, ".times.0"),
        ({"pair": (1,)}, ".pair"),
        ({"pair": (1, [])}, ".pair.1"),
        ({"ranks": [{"state": torch.ones(4, dtype=torch.uint8)}]}, ".ranks.0.state"),
        ({"ranks": [{"state": torch.ones(3)}]}, ".ranks.0.state"),
        ({"added": torch.ones(1)}, ".added"),
        ({"added": {"a": [float("nan")]}}, ".added.a.0"),
    ],
)
def test_a_value_of_another_kind_is_named(state, key):
    with pytest.raises(BadStructure, match=rf"^callbacks\.A{key} is not "):
        check_like(state, LIKE, "callbacks.A")


def test_further_values_may_be_anything_where_that_is_said():
    check_like({"added": torch.ones(1)}, LIKE, "loops", further=True)


@pytest.mark.parametrize(
    "config",
    [
        {"model": []},
        {"a": (1, 2)},
        {"a": torch.ones(1)},
        {"a": {"class_path": 3}},
        {"a": {"init_args": [1]}},
        {"a": {1: 2}},
        {"a": "x" * 10_001},
        {"a": [0] * 100_001},
        [],
    ],
)
def test_a_config_is_of_plain_values(config):
    with pytest.raises(BadStructure, match=r"^config"):
        check_config(config)
    check_config({"model": {"gpt": {"class_path": "a.B", "init_args": {"c": [1, 2.5, None, True, "d"]}}}})


def test_weights_alone_are_contents():
    check_contents({"state_dict": {"a": Layout((3,), torch.float32)}})
    for contents in ({}, [], {"state_dict": {"a": 1}}, {"state_dict": {1: Layout((), torch.float32)}}):
        with pytest.raises(BadStructure):
            check_contents(contents)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,
    "RMSprop": lambda params: torch.optim.RMSprop(params, momentum=0.5, centered=True),
    "LBFGS": torch.optim.LBFGS,
    "Lion": Lion,
    "Muon": lambda params: Muon([p for p in params if p.ndim == 2], variance_reduction=True),
    "RowAdagrad": lambda params: RowAdagrad([p for p in params if p.ndim == 2]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_states_that_the_optimizer_can_load_are_accepted(name):
    module = network()
    optimizer = OPTIMIZERS[name](list(module.parameters()))

    def closure():
        optimizer.zero_grad()
        loss = module(torch.ones(5, 4)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    state = optimizer.state_dict()
    fresh = OPTIMIZERS[name](list(network().parameters()))
    check_optimizer_state(state, fresh, "a")
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim and name != "LBFGS":  # whose state is of all together
                for other in (torch.ones(7), value.to(torch.complex64)):
                    altered = {**state, "state": {**state["state"], number: {**values, key: other}}}
                    with pytest.raises(BadStructure, match=rf"^a\.state\.{number}\.{key} is not"):
                        check_optimizer_state(altered, fresh, "a")
    fewer = {**state["param_groups"][0], "params": []}
    with pytest.raises(BadStructure, match=r"^a\.param_groups\.0 is not of \d parameters"):
        check_optimizer_state({**state, "param_groups": [fewer]}, fresh, "a")
