"""Common functions of the optimizers: a step's closure, small parameters, and state that keeps its precision."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOST_ONE_BY_ONE = 2**17  # elements that share the operations of a step; they fit into a core's cache


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Evaluates a step's closure, if there is one, with gradients enabled, and returns the loss."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def is_small(param: Tensor) -> bool:
    """Whether a parameter is on the CPU, as a whole, and fits into a core's cache, and there are several threads."""
    whole = not hasattr(param, "to_local")
    return param.device.type == "cpu" and whole and param.numel() <= MOST_ONE_BY_ONE and torch.get_num_threads() > 1


def restore_precision(optimizer: Optimizer, state_dict: Mapping[str, Any], name: str) -> None:
    """Restores the saved precision of one entry of the state.

    Optimizer.load_state_dict converts all state to its parameter's type. Sums and moving averages in bfloat16 soon stop
    changing; optimizers therefore keep them in float32, also for parameters of lower precision.

    Args:
        optimizer: The optimizer, which has just loaded `state_dict`.
        state_dict: The loaded state.
        name: Key of the entry in a parameter's state.
    """
    saved = [key for group in state_dict["param_groups"] for key in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for key, param in zip(saved, params, strict=True):
        state = state_dict["state"].get(key, {})
        if name in state and param.dtype != state[name].dtype:
            optimizer.state[param][name] = state[name].to(param.device)
