"""Sparse gradients: whether an optimizer supports them, and whether it has only these."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer, SparseAdam

from bytelm.errors import ConfigError
from bytelm.optim.groups import FIXED, ParamGroup, ParamGroups, RowSplits


def takes_sparse_gradients(optimizer: Callable[[ParamGroups], Optimizer], groups: ParamGroups | None = None) -> bool:
    """Whether an optimizer supports a table with a sparse gradient; found by a step on a small one.

    Args:
        optimizer: Makes the optimizer.
        groups: The network's groups, if the optimizer needs their names; default only a table.
    """
    table = nn.Parameter(torch.zeros(2, 2))
    table.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (2, 2), check_invariants=False)
    others = [
        ParamGroup({"name": group["name"], "params": [nn.Parameter(torch.zeros(2, 2))]}, _first(group.row_splits))
        for group in groups or ()
        if group["name"] != "table"
    ]
    try:
        optimizer([*others, ParamGroup({"name": "table", "params": [table], **FIXED["table"]}, {})]).step()
    except Exception:  # an optimizer can raise anything for unsupported gradients
        return False
    return True


def check_dense_gradients(optimizer: Optimizer, network: nn.Module) -> None:
    """Checks that SparseAdam, which would fail in its first step, gets no dense gradients.

    Args:
        optimizer: The optimizer, which may consist of several (ByGroup).
        network: The network.

    Raises:
        ConfigError: It gets some.
    """
    sparse = {id(module.weight) for module in network.modules() if getattr(module, "sparse", False) is True}
    for each in getattr(optimizer, "optimizers", [optimizer]):
        for group in each.param_groups if isinstance(each, SparseAdam) else ():
            if any(id(parameter) not in sparse for parameter in group["params"]):
                accepted = f"the group {group['name']} has dense ones; accepted: AdamW, or ByGroup with it for tables"
                raise ConfigError("model.optimizer", "SparseAdam", f"it takes sparse gradients alone, and {accepted}")


def _first(row_splits: Mapping[int, RowSplits]) -> dict[int, RowSplits]:
    """One of a group's declarations, for the one parameter that represents the group."""
    return dict(enumerate(list(row_splits.values())[:1]))
