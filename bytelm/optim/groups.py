"""Parameter groups: sets of parameters that share an optimizer's options.

A module declares the groups of its parameters in a class or instance attribute:

    optimizer_groups = {"blocks": "hidden", "head": "head", "scale": "scalar"}

Each key is the dotted path of a child module or of a parameter below the declaring module. A child module stands for
its tensors of two or more dimensions and those of its descendants; a parameter of any shape stands for itself. The
declaration nearest to a parameter applies: that of a deeper module before that of an outer one and, within one module,
that of the parameter before that of a module around it, and a longer path before a shorter one.

| group | members without a declaration | fixed options |
| --- | --- | --- |
| hidden | nothing | |
| embedding | tensors of two or more dimensions | |
| head | nothing | |
| any other name | nothing | |
| vector | tensors of one dimension: biases, scales of norms | no weight decay |
| scalar | tensors without dimensions | no weight decay |
| table | nothing; for large tables of which a step reads few rows | no weight decay, not clipped |

A module whose weight consists of several matrices, concatenated by rows, declares their rows for optimizers that treat
each matrix separately. With `row_splits = {"qkv": [[64, 64], [64], [64]]}` the weight of `qkv` consists of three
matrices, the first of which consists of two heads of 64 rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bytelm.errors import CheckpointError

RowSplits = Sequence[Sequence[int]]
"""The rows of each head, for each of the matrices in a fused one."""

FIRST = ("hidden", "embedding", "head")
LAST = ("vector", "scalar", "table")
FIXED: dict[str, dict[str, Any]] = {
    "vector": {"weight_decay": 0.0},
    "scalar": {"weight_decay": 0.0},
    # torch does not clip sparse gradients, and the size of RowAdagrad's steps does not depend on them.
    "table": {"weight_decay": 0.0, "clip": False},
}
# In checkpoints of earlier versions the parameters of these groups are in the other group, in network order.
FORMERLY = {"head": "embedding", "scalar": "vector"}


class ParamGroup(dict[str, Any]):
    """A parameter group for torch's optimizers.

    Keys are `name`, `params`, and, if they are fixed, `weight_decay` and `clip` (whether gradients are clipped and
    included in their norm; default true). An optimizer adds its own options.

    Args:
        items: The keys and values.
        row_splits: See below.

    Attributes:
        row_splits: The parts of fused matrices, by their index in `params`. An attribute, because all keys of a group
            become part of the optimizer's state and of checkpoints.
    """

    def __init__(self, items: Mapping[str, Any], row_splits: Mapping[int, RowSplits]) -> None:
        super().__init__(items)
        self.row_splits = dict(row_splits)


ParamGroups = list[ParamGroup]


def param_groups(network: nn.Module) -> ParamGroups:
    """Sorts a network's parameters into named groups by the declarations of its modules.

    Args:
        network: The network. Parameters without gradients are left out. A shared parameter belongs to its first place
            in `network.parameters()`: a head that is tied to the embedding is in the embedding's group.

    Returns:
        The groups with parameters, in the order hidden, embedding, head, other names as they appear, vector, scalar,
        table. Within a group parameters have the order of `network.parameters()`.

    Raises:
        ValueError: A declaration names a parameter or module that does not exist.
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
    """Adapts an optimizer's saved state to the current groups of a network.

    In earlier versions the head's weight was in the group of the embedding, and scalars were among the vectors. A group
    that is now separate starts with the options of its former group.

    Args:
        state: The optimizer's `state_dict`. Groups without names are not changed.
        network: The network that the optimizer trains.

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
            "ckpt_path: the optimizer's state has other parameter groups: "
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
    """The parts of fused matrices, by the parameter's path."""
    splits: dict[str, RowSplits] = {}
    for prefix, module in network.named_modules():
        for path, target, rows in _targets(module, "row_splits"):
            path = f"{path}.weight" if isinstance(target, nn.Module) else path
            weight: Any = target.weight if isinstance(target, nn.Module) else target
            if sum(sum(heads) for heads in rows) != weight.shape[-2]:
                raise ValueError(
                    f"{type(module).__name__}.row_splits: {path} has {weight.shape[-2]} rows, but {rows} are declared"
                )
            splits[f"{prefix}.{path}" if prefix else path] = rows
    return splits


def _targets(module: nn.Module, attribute: str) -> Iterator[tuple[str, Any, Any]]:
    """A module's declarations: path, the module or parameter there, and the declared value."""
    for path, value in getattr(module, attribute, {}).items():
        target: Any = module
        for name in path.split("."):
            target = getattr(target, name, False)
        if target is None:  # an optional part that this module does not have, such as a bias
            continue
        if not isinstance(target, nn.Module | nn.Parameter):
            raise ValueError(f"{type(module).__name__}.{attribute}: {path!r} is not one of its modules or parameters")
        yield path, target, value
