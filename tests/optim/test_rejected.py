"""Errors of optimizers name the option, its value and the accepted values."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adagrad, AdamW

from bytelm.optim import ByGroup, Lion, Muon, MuonAdamW, ParamGroup, rejected


def groups():
    weights = {"hidden": torch.zeros(2, 2), "vector": torch.zeros(2)}
    return [ParamGroup({"name": name, "params": [nn.Parameter(each)]}, {}) for name, each in weights.items()]


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        (partial(AdamW, lr=-0.1), "model.optimizer.lr: -0.1 cannot be used; accepted: a number from 0"),
        (partial(AdamW, lr=float("nan")), "model.optimizer.lr: nan cannot be used; accepted: a number from 0"),
        (
            partial(AdamW, betas=(0.9, 1.5)),
            "model.optimizer.betas: (0.9, 1.5) cannot be used; accepted: numbers from 0",
        ),
        (partial(AdamW, lr=-1.0, weight_decay=-1.0), "model.optimizer.lr: -1.0"),
        (partial(SGD, weight_decay=-1.0), "model.optimizer.weight_decay: -1.0 cannot be used; accepted: a number"),
        (partial(Adafactor, lr=-1.0), "model.optimizer.lr: -1.0 cannot be used; accepted: a number from 0"),
        (partial(Adagrad, lr_decay=-1.0), "model.optimizer.lr_decay: -1.0 cannot be used; Invalid lr_decay value for"),
        (partial(SGD, nesterov=True), "model.optimizer: 'SGD' cannot be used; Nesterov momentum requires"),
        (partial(Lion, lr=-1.0), "model.optimizer: 'Lion' cannot be used; it rejects one of its options"),
        (partial(MuonAdamW, adamw_lr=-1.0), "model.optimizer.adamw_lr: -1.0 cannot be used; accepted: a number from 0"),
        (partial(MuonAdamW, lr=-1.0), "model.optimizer.lr: -1.0 cannot be used; accepted: 0 or more"),
        (
            partial(ByGroup, groups={"hidden": partial(Muon, lr=0.1)}, default=partial(AdamW, lr=-2.0)),
            "model.optimizer.default.lr: -2.0 cannot be used; accepted: a number from 0",
        ),
    ],
)
def test_the_error_is_that_of_the_option(factory, line):
    with pytest.raises((AssertionError, ValueError)) as error:
        factory(groups())
    assert str(rejected(factory, error.value)).startswith(line)
