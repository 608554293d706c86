"""Parameter groups: which of a network's parameters share an optimizer's options.

A module declares the groups of its parameters, as a class or instance attribute:

    optimizer_groups = {"blocks": "hidden", "head": "head", "scale": "scalar"}

Each key is the dotted path of a child module or of a parameter below the declaring module. A child module stands for
its tensors of two or more dimensions and those of its descendants; a parameter stands for itself, whatever its shape.
The declaration nearest to a parameter holds: a deeper module's before an outer one's and, within one module, that of
the parameter itself before that of a module around it, and a longer path before a shorter one.

| group | what belongs there unless it is declared otherwise | fixed options |
| --- | --- | --- |
| hidden | nothing | |
| embedding | tensors of two or more dimensions | |
| head | nothing | |
| any other name | nothing | |
| vector | tensors of one dimension: biases, scales of norms | no weight decay |
| scalar | tensors without dimensions | no weight decay |
| table | nothing; meant for large tables of which a step reads few rows | no weight decay, not clipped |

A module whose weight holds several matrices one below the other declares their rows, for optimizers that treat each
matrix apart: `row_splits = {"qkv": [[64, 64], [64], [64]]}` says that the weight of `qkv` consists of three matrices,
the first of which consists of two heads of 64 rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bytelm.errors import CheckpointError

RowSplits = Sequence[Sequence[int]]
"""For each of the matrices in a fused one, the rows of each of its heads."""

FIRST = ("hidden", "embedding", "head")
LAST = ("vector", "scalar", "table")
FIXED: dict[str, dict[str, Any]] = {
    "vector": {"weight_decay": 0.0},
    "scalar": {"weight_decay": 0.0},
    # Gradients of tables may be sparse, which torch does not clip, and RowAdagrad's steps do not grow with them.
    "table": {"weight_decay": 0.0, "clip": False},
}
# Checkpoints of earlier versions have these groups' parameters in the other one, in the order of the network.
FORMERLY = {"head": "embedding", "scalar": "vector"}


class ParamGroup(dict[str, Any]):
    """A parameter group in the form that torch's optimizers take.

    Keys are `name`, `params`, and where they are fixed `weight_decay` and `clip` (whether gradients are clipped and
    count in their norm; default true). An optimizer adds its own options.

    Args:
        items: The keys and values.
        row_splits: See below.

    Attributes:
        row_splits: How fused matrices divide, by their index in `params`. An attribute, because all keys of a group get
            into the state of every optimizer, and into its checkpoints.
    """

    def __init__(self, items: Mapping[str, Any], row_splits: Mapping[int, RowSplits]) -> None:
        super().__init__(items)
        self.row_splits = dict(row_splits)


ParamGroups = list[ParamGroup]


def param_groups(network: nn.Module) -> ParamGroups:
    """Sorts a network's parameters into named groups, as its modules declare them.

    Args:
        network: Parameters that require no gradient are left out. A shared parameter has one place, the first in
            `network.parameters()`: a head that is tied to the embedding is in the embedding's group.

    Returns:
        Groups that are not empty, in the order hidden, embedding, head, any other names as they appear, vector, scalar,
        table. Within a group parameters keep the order of `network.parameters()`.

    Raises:
        ValueError: A declaration names something that its module does not have.
    """
    params = dict(network.named_parameters())
    declared = _declared(network)
    splits = _row_splits(network)
    found: dict[str, list[str]] = {name: [] for name in FIRST}
    for path, param in params.items():
        if param.requires_grad:
            found.setdefault(declared.get(path) or _default(param.ndim), []).append(path)
    names = [*(name for name in found if name not in LAST), *LAST]
    return [
        ParamGroup(
            {"name": name, "params": [params[path] for path in found[name]], **FIXED.get(name, {})},
            {i: splits[path] for i, path in enumerate(found[name]) if path in splits},
        )
        for name in names
        if found.get(name)
    ]


def regroup(state: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Adapts an optimizer's saved state to the groups that a network has now.

    Earlier versions had the head's weight in the group of the embedding, and scalars among the vectors. A group that is
    now separate starts with the options of the one that it was part of.

    Args:
        state: What the optimizer's `state_dict` returned. Groups without names are left as they are.
        network: The network that the optimizer is to train.

    Raises:
        CheckpointError: The groups are not those of this network.
    """
    saved = {group["name"]: group for group in state["param_groups"] if "name" in group}
    if len(saved) < len(state["param_groups"]):
        return dict(state)
    order = {id(param): i for i, param in enumerate(network.parameters())}
    groups = param_groups(network)
    source = {group["name"]: group["name"] for group in groups}
    source |= {name: FORMERLY[name] for name in source if name in FORMERLY and name not in saved}
    keys: dict[int, Any] = {}  # by parameter
    sizes: dict[str, int] = {}
    for name in dict.fromkeys(source.values()):
        params = [param for group in groups if source[group["name"]] == name for param in group["params"]]
        sizes[name] = len(params)
        keys |= dict(
            zip(sorted(map(id, params), key=order.__getitem__), saved.get(name, {}).get("params", ()), strict=False)
        )
    if sizes != {name: len(group["params"]) for name, group in saved.items()}:
        raise CheckpointError(
            "ckpt_path: the optimizer's state is of other parameter groups: "
            f"{_sizes(saved.values())} in the checkpoint, {_sizes(groups)} now"
        )
    regrouped = [
        {
            **saved[source[group["name"]]],
            **{key: group[key] for key in ("name", "clip") if key in group},
            "params": [keys[id(param)] for param in group["params"]],
        }
        for group in groups
    ]
    return {**state, "param_groups": regrouped}


def _sizes(groups: Any) -> str:
    return ", ".join(f"{group['name']} ({len(group['params'])})" for group in groups)


def _default(ndim: int) -> str:
    return "scalar" if ndim == 0 else "vector" if ndim == 1 else "embedding"


def _declared(network: nn.Module) -> dict[str, str]:
    """The declared group of each parameter that has one, by the parameter's path."""
    matrices = [path for path, param in network.named_parameters() if param.ndim >= 2]
    groups: dict[str, str] = {}
    # Outer modules and shorter paths first, exact parameters last: later entries replace earlier ones.
    for prefix, module in network.named_modules():
        exact: dict[str, str] = {}
        for path, target, group in sorted(_targets(module, "optimizer_groups"), key=lambda entry: entry[0].count(".")):
            full = f"{prefix}.{path}" if prefix else path
            if isinstance(target, nn.Module):
                groups |= {name: group for name in matrices if name.startswith(f"{full}.")}
            else:
                exact[full] = group
        groups |= exact
    return groups


def _row_splits(network: nn.Module) -> dict[str, RowSplits]:
    """How fused matrices divide, by the parameter's path."""
    splits: dict[str, RowSplits] = {}
    for prefix, module in network.named_modules():
        for path, target, rows in _targets(module, "row_splits"):
            path = f"{path}.weight" if isinstance(target, nn.Module) else path
            weight: Any = target.weight if isinstance(target, nn.Module) else target
            if sum(sum(heads) for heads in rows) != weight.shape[-2]:
                raise ValueError(
                    f"{type(module).__name__}.row_splits: {path} has {weight.shape[-2]} rows, and {rows} are declared"
                )
            splits[f"{prefix}.{path}" if prefix else path] = rows
    return splits


def _targets(module: nn.Module, attribute: str) -> Iterator[tuple[str, Any, Any]]:
    """A module's declarations: path, the module or parameter there, and the declared value."""
    for path, value in getattr(module, attribute, {}).items():
        target: Any = module
        for name in path.split("."):
            target = getattr(target, name, False)
        if target is None:  # an optional part, such as a bias, that this one goes without
            continue
        if not isinstance(target, nn.Module | nn.Parameter):
            raise ValueError(f"{type(module).__name__}.{attribute}: {path!r} is neither a module nor a parameter of it")
        yield path, target, value
