"""Which optimizers can step on sparse gradients."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from bytelm.optim.groups import FIXED, ParamGroup, ParamGroups


def takes_sparse_gradients(optimizer: Callable[[ParamGroups], Optimizer], groups: ParamGroups | None = None) -> bool:
    """Whether an optimizer can step on a table with a sparse gradient, found by letting it try on a small one.

    Args:
        optimizer: Makes the optimizer.
        groups: The network's groups, whose names the optimizer may ask for; default a table alone.
    """
    names = ["table"] if groups is None else [group["name"] for group in groups]
    if "table" not in names:  # its tables are frozen
        return True
    probes = {name: nn.Parameter(torch.zeros(2, 2)) for name in names}
    probes["table"].grad = torch.sparse_coo_tensor(
        torch.tensor([[0]]), torch.ones(1, 2), (2, 2), check_invariants=False
    )
    try:
        optimizer(
            [ParamGroup({"name": name, "params": [probe], **FIXED.get(name, {})}, {}) for name, probe in probes.items()]
        ).step()
    except Exception:  # whatever an optimizer raises for gradients that it does not support
        return False
    return True
