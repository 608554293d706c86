"""RowAdagrad: Adagrad with one accumulator for each row, for tables of which a step reads few rows."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from bytelm.optim.base import loss_of, restore_precision


class RowAdagrad(Optimizer):
    """Adagrad (Duchi et al. 2011) with one accumulator for each row.

    As in DLRM (Naumov et al. 2019, arXiv:1906.00091) and FBGEMM's exact row-wise Adagrad: for each row with gradient g

        sum += mean(g^2),  row -= lr g / (sqrt(sum) + eps).

    A row without a gradient does not change. Sparse and dense gradients therefore give the same tables, on the CPU bit
    for bit. With sparse gradients a step accesses only the rows in use.

    Args:
        params: Tables, (rows, dim), or groups of them.
        lr: Learning rate: about how far each element of a row moves when it is first seen.
        eps: Added to the denominator.

    Raises:
        ValueError: lr or eps is invalid, or a tensor does not have two dimensions.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, eps: float = 1e-10) -> None:
        if lr < 0:
            raise ValueError(f"lr: {lr} cannot be used; accepted: 0 or more")
        if eps <= 0:  # with 0, rows with zero gradients become NaN
            raise ValueError(f"eps: {eps} cannot be used; accepted: more than 0")
        super().__init__(params, {"lr": lr, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.ndim != 2:
                raise ValueError(f"RowAdagrad needs tables with 2 dimensions; a parameter has {param.ndim}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_precision(self, state_dict, "sum")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step.

        Args:
            closure: Evaluates the model again and returns the loss.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["sum"] = torch.zeros_like(table[:, 0], dtype=torch.float32)
                if table.grad.is_sparse:
                    _step_on_rows(table, state["sum"], group["lr"], group["eps"])
                else:
                    _step(table, state["sum"], group["lr"], group["eps"])
        return loss


def _step_on_rows(table: Tensor, sums: Tensor, lr: float, eps: float) -> None:
    assert table.grad is not None
    rows, values = _by_row(table.grad)
    touched = sums.index_select(0, rows) + values.square().mean(dim=1)
    sums.index_copy_(0, rows, touched)
    # index_add_ takes three times as long on the CPU.
    table.index_copy_(0, rows, table.index_select(0, rows) - _change(values, touched, lr, eps).to(table.dtype))


def _by_row(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a sparse gradient, (n,), and the sum of each row's entries, (n, dim).

    Like grad.coalesce(), in the same time, but entries are summed in their order, like those of dense gradients.
    """
    ordered, entries = grad._indices()[0].sort(stable=True)
    rows, counts = ordered.unique_consecutive(return_counts=True)
    return rows, F.embedding_bag(entries, grad._values().float(), counts.cumsum(0) - counts, mode="sum")


def _step(table: Tensor, sums: Tensor, lr: float, eps: float) -> None:
    assert table.grad is not None
    values = table.grad.float()
    sums += values.square().mean(dim=1)
    table -= _change(values, sums, lr, eps).to(table.dtype)


def _change(values: Tensor, sums: Tensor, lr: float, eps: float) -> Tensor:
    return values * (lr / (sums.sqrt() + eps))[:, None]
