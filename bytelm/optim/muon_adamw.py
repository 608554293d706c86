"""MuonAdamW: the usual combination of optimizers under one name."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from torch.optim import AdamW, Optimizer

from bytelm.optim.by_group import ByGroup, OptimizerFactory
from bytelm.optim.groups import ParamGroup, ParamGroups
from bytelm.optim.muon import Muon
from bytelm.optim.row_adagrad import RowAdagrad


class MuonAdamW(ByGroup):
    """Muon on the hidden matrices, AdamW on the rest (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    RowAdagrad trains the tables of embeddings. For other optimizers, or other options for a single group, use ByGroup.

    Args:
        params: Groups with names. Muon trains the group `hidden`, RowAdagrad the group `table`.
        lr: Muon's learning rate.
        adamw_lr: AdamW's learning rate.
        adamw_betas: AdamW's decay rates of the first and second moment.
        adamw_weight_decay: AdamW's decoupled weight decay.
        adamw_eps: Added to AdamW's denominator.
        adamw_fused: Whether AdamW's step is one kernel; by default torch chooses.
        table_lr: RowAdagrad's learning rate.
        muon: Muon's other options.
    """

    UNUSED_WITH: ClassVar = Muon.UNUSED_WITH

    def __init__(
        self,
        params: Iterable[ParamGroup],
        lr: float = 0.02,
        adamw_lr: float = 3e-3,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_weight_decay: float = 0.1,
        adamw_eps: float = 1e-8,
        adamw_fused: bool | None = None,
        table_lr: float = 0.1,
        **muon: Any,
    ) -> None:
        def hidden(groups: ParamGroups) -> Optimizer:
            return Muon(groups, lr=lr, **muon)

        def table(groups: ParamGroups) -> Optimizer:
            return RowAdagrad(groups, lr=table_lr)

        def rest(groups: ParamGroups) -> Optimizer:
            return AdamW(
                groups,
                lr=adamw_lr,
                betas=adamw_betas,
                weight_decay=adamw_weight_decay,
                eps=adamw_eps,
                fused=adamw_fused,
            )

        given = list(params)
        special: dict[str, OptimizerFactory] = {"hidden": hidden, "table": table}
        super().__init__(given, {g["name"]: special[g["name"]] for g in given if g["name"] in special}, rest)

    @classmethod
    def without_effect(cls, options: Mapping[str, Any], groups: AbstractSet[str]) -> Iterator[str]:
        """Yields notes of options that have no effect on a network with some groups.

        Args:
            options: The given options.
            groups: Names of the network's groups.
        """
        default = inspect.signature(cls).parameters["table_lr"].default
        if "table" not in groups and options.get("table_lr", default) != default:
            yield "table_lr has no effect, because the network has no group `table`"
