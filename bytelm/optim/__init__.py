"""What the optimizer is given: named parameter groups; and the one optimizer that torch.optim has only in halves.

Any optimizer that takes parameter groups can be named in a config: those of torch.optim, `Lion` of lion-pytorch, one of
yours. Its `weight_decay` holds for tensors of two or more dimensions, tables aside; the rest never decays.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lion_pytorch import Lion
from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

from bytelm.optim.row_adagrad import RowAdagrad, loss_of, restore_sums
from bytelm.parts.embedding import Table

__all__ = [
    "Adam",
    "AdamW",
    "Lion",
    "Muon",
    "MuonAdamW",
    "ParamGroup",
    "ParamGroups",
    "RowAdagrad",
    "param_groups",
    "takes_sparse_gradients",
]

ParamGroup = dict[str, Any]
ParamGroups = list[ParamGroup]


def param_groups(network: nn.Module, blocks: nn.Module) -> ParamGroups:
    """Sorts a network's trained parameters into `hidden`, `embedding`, `vector` and `table`; empty groups are left out.

    Args:
        network: All parameters.
        blocks: The part of the network whose matrices are hidden ones (neither embedding nor head): what Muon is for.

    Returns:
        Groups with a `name`. `hidden` (matrices in blocks) and `embedding` (other tensors of two or more dimensions)
        take the optimizer's weight decay; `vector` (biases, norms) and `table` (of modules of class Table) have none.
    """
    in_blocks = {id(p) for p in blocks.parameters()}
    in_tables = {id(p) for module in network.modules() if isinstance(module, Table) for p in module.parameters()}
    all_trained = [p for p in network.parameters() if p.requires_grad]
    trained = [p for p in all_trained if id(p) not in in_tables]
    groups: ParamGroups = [
        {"name": "hidden", "params": [p for p in trained if p.ndim == 2 and id(p) in in_blocks]},
        {
            "name": "embedding",
            "params": [p for p in trained if p.ndim >= 2 and not (p.ndim == 2 and id(p) in in_blocks)],
        },
        {"name": "vector", "params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"name": "table", "params": [p for p in all_trained if id(p) in in_tables], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def takes_sparse_gradients(optimizer: Callable[[ParamGroups], Optimizer]) -> bool:
    """Whether an optimizer can step on a table with a sparse gradient, found by letting it try on one of its own."""
    table = nn.Parameter(torch.zeros(2, 2))
    table.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (2, 2), check_invariants=False)
    try:
        optimizer([{"name": "table", "params": [table], "weight_decay": 0.0}]).step()
    except Exception:  # whatever an optimizer raises at what it was not written for
        return False
    return True


class MuonAdamW(Optimizer):
    """Muon on the hidden matrices, AdamW on the rest (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Tables, where an embedding has any, go to RowAdagrad. The arithmetic is torch.optim's and RowAdagrad's; this class
    makes one optimizer of them, with one state and one list of groups.

    Args:
        params: Groups with names; the one called `hidden` goes to Muon, the one called `table` to RowAdagrad.
        lr: Muon's learning rate.
        weight_decay: Muon's decoupled weight decay.
        momentum: Muon's momentum.
        nesterov: Whether Muon's momentum is Nesterov's.
        ns_steps: Newton-Schulz iterations of Muon's orthogonalisation.
        adjust_lr_fn: How Muon's rate follows a matrix's shape: `original` (as in Jordan et al., the default) or
            `match_rms_adamw` (Liu et al. 2025, arXiv:2502.16982), which lets it share AdamW's rate.
        adamw_lr: AdamW's learning rate.
        adamw_betas: AdamW's decay rates of the first and second moment.
        adamw_weight_decay: AdamW's decoupled weight decay.
        adamw_eps: Added to AdamW's denominator.
        adamw_fused: Whether AdamW's step is one kernel; by default torch chooses.
        table_lr: RowAdagrad's learning rate.
    """

    def __init__(
        self,
        params: Iterable[ParamGroup],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        adamw_lr: float = 3e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_weight_decay: float = 0.1,
        adamw_eps: float = 1e-8,
        adamw_fused: bool | None = None,
        table_lr: float = 0.1,
    ) -> None:
        groups = list(params)
        hidden = [group for group in groups if group.get("name") == "hidden"]
        tables = [group for group in groups if group.get("name") == "table"]
        rest = [group for group in groups if group.get("name") not in ("hidden", "table")]
        self._parts: list[tuple[Optimizer, int]] = []  # an optimizer and how many of the groups are its own
        if hidden:
            muon = Muon(
                hidden,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr_fn,
            )
            self._parts.append((muon, len(hidden)))
        if rest:
            adamw = AdamW(
                rest,
                lr=adamw_lr,
                betas=adamw_betas,
                weight_decay=adamw_weight_decay,
                eps=adamw_eps,
                fused=adamw_fused,
            )
            self._parts.append((adamw, len(rest)))
        if tables:
            self._parts.append((RowAdagrad(tables, lr=table_lr), len(tables)))
        self._complete = False
        # The parts have filled their defaults into the groups, so none are left to give here.
        super().__init__([group for part, _ in self._parts for group in part.param_groups], {})
        self._complete = True

    def add_param_group(self, param_group: ParamGroup) -> None:
        """For the constructor.

        Raises:
            RuntimeError: It is called later, when a group could not be given to one of the optimizers any more.
        """
        if self._complete:
            raise RuntimeError("MuonAdamW takes all of its parameter groups when it is made")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts, "_complete": self._complete}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_sums(self, state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step of all of them.

        Args:
            closure: Evaluates the model again and returns the loss.
        """
        loss = loss_of(closure)
        first = 0
        for part, n_groups in self._parts:
            # Lent anew each step, since loading a checkpoint replaces both objects.
            part.param_groups = self.param_groups[first : first + n_groups]
            part.state = self.state
            part.step()
            first += n_groups
        return loss
