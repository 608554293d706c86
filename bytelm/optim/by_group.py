"""ByGroup: one optimizer that consists of several, one for each parameter group."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bytelm.errors import CheckpointError
from bytelm.optim.base import is_small, loss_of
from bytelm.optim.groups import ParamGroup, ParamGroups
from bytelm.system.single_threads import single_threads

OptimizerFactory = Callable[[ParamGroups], Optimizer]

SCALING = ("grad_scale", "found_inf")  # set by a gradient scaler on an optimizer whose step unscales gradients


class ByGroup(Optimizer):
    """Trains each parameter group with a separate optimizer.

        optimizer:
          class_path: ByGroup
          init_args:
            groups:
              hidden: {class_path: Muon, init_args: {lr: 0.02}}
              embedding: {class_path: AdamW, init_args: {lr: 0.003}}
            default: {class_path: AdamW, init_args: {lr: 0.001}}

    Each optimizer computes its own updates, with fused or foreach kernels if it has them, and loads its own state. They
    share one list of groups, one state and one checkpoint, like a single optimizer. A schedule multiplies the initial
    learning rate of each group.

    A fused optimizer unscales gradients under a gradient scaler (`16-mixed`) only if all of them do; otherwise the
    scaler unscales them before the step.

    Args:
        params: Groups with names, as `param_groups` returns them. The usual ones are `hidden`, `embedding`, `head`,
            `vector`, `scalar` and `table`; a network has only groups with parameters.
        groups: The optimizer of a group, by the group's name.
        default: The optimizer of each group that is not in `groups`; one instance for each group.

    Attributes:
        optimizers: The optimizers of the groups.
        param_groups: The groups of all optimizers, in the order of `params`; each has the class name of its optimizer
            as `optimizer`.
        state: The state of each parameter.

    Raises:
        ValueError: A group has no optimizer, the network has no such group, or an optimizer rejects its group.
    """

    def __init__(
        self,
        params: Iterable[ParamGroup],
        groups: dict[str, OptimizerFactory],
        default: OptimizerFactory | None = None,
    ) -> None:
        given = list(params)
        names = [group["name"] for group in given]
        for name in groups:
            if name not in names:
                raise ValueError(f"groups.{name}: the network has no such group; accepted: {', '.join(names)}")
        optimizers = [_make(groups.get(group["name"], default), group) for group in given]
        # The groups already contain the defaults of their optimizers.
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        self.state = _State(optimizers)  # type: ignore[assignment]
        if all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers):
            self._step_supports_amp_scaling = True

    @classmethod
    def without_effect(cls, options: Mapping[str, Any], groups: AbstractSet[str]) -> Iterator[str]:
        """Yields notes of options that have no effect on a network with some groups.

        Args:
            options: The given options.
            groups: Names of the network's groups.
        """
        if options.get("default") is not None and groups <= options.get("groups", {}).keys():
            yield "default has no effect, because each group of the network has its own optimizer"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; only for the constructor.

        Raises:
            RuntimeError: It is called after construction.
        """
        if hasattr(self, "optimizers"):
            raise RuntimeError(f"{type(self).__name__} accepts parameter groups only in its constructor")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        own = ("optimizers", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{key: vars(self)[key] for key in own if key in vars(self)}}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step of each optimizer.

        Args:
            closure: Evaluates the model again and returns the loss.
        """
        loss = loss_of(closure)
        scaling = {key: vars(self)[key] for key in SCALING if key in vars(self)}
        for optimizer in self.optimizers:
            vars(optimizer).update(scaling)
        beside = [optimizer for optimizer in self.optimizers if self._is_beside(optimizer)]
        pool = single_threads(torch.get_num_threads()) if beside else None
        begun = [pool.submit(optimizer.step) for optimizer in beside] if pool else []
        for optimizer in self.optimizers:
            if optimizer not in beside:
                optimizer.step()
        for each in begun:
            each.result()
        for optimizer in self.optimizers:
            for key in scaling:
                delattr(optimizer, key)
        return loss

    def _is_beside(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer steps in a thread beside one that divides its step over threads.

        Its operators then use one thread. Torch would divide some over all, which spin for milliseconds afterwards,
        beside the threads of the next step.
        """
        if getattr(optimizer, "is_divided", False) or not any(getattr(o, "is_divided", False) for o in self.optimizers):
            return False
        return all(is_small(param) for group in optimizer.param_groups for param in group["params"])

    def state_dict(self) -> dict[str, Any]:
        """The state of all optimizers, in the form of one optimizer of all groups.

        State that belongs to the i-th optimizer and to no parameter has the key `<i>.<key>`.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        merged: dict[str, Any] = {"state": state, "param_groups": groups}
        for i, optimizer in enumerate(self.optimizers):
            own = optimizer.state_dict()
            first = sum(len(group["params"]) for group in groups)
            groups += [{**group, "params": [key + first for key in group["params"]]} for group in own["param_groups"]]
            state |= {key + first if isinstance(key, int) else f"{i}.{key}": v for key, v in own["state"].items()}
            merged |= {f"{i}.{key}": value for key, value in own.items() if key not in ("state", "param_groups")}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            merged = post_hook(self, merged) or merged
        return merged

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Gives each optimizer its share of a state.

        Raises:
            CheckpointError: The state has other groups, or another optimizer for a group.
        """
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        _check(state_dict["param_groups"], self.param_groups)
        first = 0
        for i, optimizer in enumerate(self.optimizers):
            last = first + len(optimizer.param_groups)
            optimizer.load_state_dict(_share(state_dict, slice(first, last), f"{i}."))
            first = last
        # Loading creates new groups. Their names and `clip` remain those of the network.
        loaded = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, before in zip(loaded, self.param_groups, strict=True):
            group.update({key: before[key] for key in ("name", "clip", "optimizer") if key in before})
        self.param_groups = loaded
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)


class _State(MutableMapping[Tensor, Any]):
    """The state of each parameter, stored in the parameter's optimizer."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._owner = {
            param: optimizer
            for optimizer in optimizers
            for group in optimizer.param_groups
            for param in group["params"]
        }

    def __getitem__(self, param: Tensor) -> Any:
        return self._owner[param].state[param]

    def __setitem__(self, param: Tensor, state: Any) -> None:
        self._owner[param].state[param] = state

    def __delitem__(self, param: Tensor) -> None:
        del self._owner[param].state[param]

    def __contains__(self, param: object) -> bool:
        return param in self._owner and param in self._owner[param].state

    def __iter__(self) -> Iterator[Tensor]:
        return (param for param in self._owner if param in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _make(factory: OptimizerFactory | None, group: ParamGroup) -> Optimizer:
    name = group["name"]
    if factory is None:
        raise ValueError(f"groups.{name}: the network's group {name} has no optimizer; name one there, or a default")
    try:
        optimizer = factory([group])
    except (AssertionError, RuntimeError, ValueError) as error:  # Lion asserts
        raise ValueError(f"group {name}: {str(error) or 'the optimizer rejects its options'}") from error
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"group {name}: {type(optimizer).__name__} evaluates the loss several times a step, which is not possible "
            "for one group; accepted: optimizers whose step needs no closure"
        )
    for own in optimizer.param_groups:
        own["optimizer"] = type(optimizer).__name__
    return optimizer


def _share(state_dict: Mapping[str, Any], groups: slice, prefix: str) -> dict[str, Any]:
    """One optimizer's share of a state, in the form of that optimizer's `state_dict`."""

    def own(entries: Mapping[Any, Any]) -> dict[str, Any]:
        return {key[len(prefix) :]: v for key, v in entries.items() if isinstance(key, str) and key.startswith(prefix)}

    saved = state_dict["param_groups"][groups]
    # With a strategy that shards weights, keys are names instead of numbers.
    ids = {key: i for i, key in enumerate(key for group in saved for key in group["params"])}
    state = {ids[key]: value for key, value in state_dict["state"].items() if key in ids}
    return {
        **own(state_dict),
        "state": {**state, **own(state_dict["state"])},
        "param_groups": [{**group, "params": [ids[key] for key in group["params"]]} for group in saved],
    }


def _check(saved: list[Any], groups: list[Any]) -> None:
    theirs, ours = ([(group.get("name"), len(group["params"])) for group in some] for some in (saved, groups))
    if theirs != ours:
        described = [", ".join(f"{name} ({size})" for name, size in sizes) for sizes in (theirs, ours)]
        raise CheckpointError(
            f"ckpt_path: the optimizer's state has other parameter groups: {described[0]} in the checkpoint, "
            f"{described[1]} now"
        )
    for before, group in zip(saved, groups, strict=True):
        if before.get("optimizer", group["optimizer"]) != group["optimizer"]:
            raise CheckpointError(
                f"ckpt_path: the optimizer of group {group['name']} is {before['optimizer']} in the checkpoint, "
                f"{group['optimizer']} now"
            )
