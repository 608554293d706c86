"""Muon: momentum with an orthogonalised direction for each matrix, and the extensions of current practice.

Notable:

- the default computes the same as torch.optim.Muon, on the CPU bit for bit;
- matrices of one shape are orthogonalised together, except on the CPU;
- each matrix of a stack (three dimensions, such as the weights of experts) is orthogonalised separately;
- if weights are sharded over ranks (FSDP2), every rank orthogonalises the whole matrix and keeps its rows.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from bytelm.optim.base import MOST_ONE_BY_ONE, is_small, loss_of, restore_precision
from bytelm.optim.groups import ParamGroup, RowSplits
from bytelm.optim.newton_schulz import COEFFICIENTS, Coefficients, frobenius_norms, iterations, orthogonalize
from bytelm.system.single_threads import single_threads

Alike = Tensor | list[Tensor]
"""Tensors of one shape, one for each parameter: stacked, or as a list."""

PRECISION = torch.bfloat16  # of the iterations
MOST_AT_ONCE = 2**24  # elements of the matrices that are orthogonalised together; more gain little speed


class Muon(Optimizer):
    """Momentum with orthogonalised directions (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    For a matrix with gradient G, momentum buffer B, learning rate lr and momentum m:

        B = m B + (1 - m) G
        D = orthogonalised((1 - m) G + m B)
        W = (1 - lr weight_decay) W - lr ratio D

    Orthogonalisation moves all singular values towards 1 by a few iterations of a polynomial (Newton-Schulz). `ratio`
    depends on the matrix's shape (adjust_lr_fn).

    Args:
        params: Groups of parameters with two dimensions, (rows, columns), or three, (matrices, rows, columns).
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Share of the buffer that each step keeps.
        nesterov: Whether to use Nesterov's momentum; otherwise the direction is the buffer.
        ns_coefficients: Coefficients of the iterations. `quintic`: those of Jordan et al., which are fast and
            bring singular values between 0.7 and 1.2. `polar_express`: different coefficients in each iteration, which
            converge to 1 (Amsel et al. 2025, arXiv:2505.16932). Or three numbers a, b, c for all iterations.
        eps: Smallest norm that a matrix is divided by.
        ns_steps: Number of iterations.
        adjust_lr_fn: Factor of the learning rate. `original`, the default: sqrt(max(1, rows / columns)), as in Jordan
            et al. `match_rms_adamw`: 0.2 sqrt(max(rows, columns)), for which AdamW's learning rate and weight decay
            work unchanged (Liu et al. 2025, arXiv:2502.16982).
        variance_reduction: Whether to divide each row of a direction by the root of its mean square, averaged over
            the steps with `beta2`, and to rescale the matrix to its norm (NorMuon: Li et al. 2025, arXiv:2510.05491).
            `longer`: columns instead of rows if a matrix has more columns than rows (nanochat).
        beta2: Decay rate of that average.
        cautious_weight_decay: Whether to skip weight decay for elements that the step moves away from zero (Chen et
            al. 2025, arXiv:2510.12402).
        adjust_weight_decay: Whether the factor of `adjust_lr_fn` multiplies weight decay, too (nanochat).
        split_qkv: Whether to orthogonalise the matrices of a fused weight, such as queries, keys and values,
            separately; `heads`: each of their heads separately. The module with the weight declares its parts
            (`row_splits`, groups.py).
        batched: Whether to orthogonalise matrices of one shape together, which is much faster for small matrices.
            Default: on devices other than the CPU. Small matrices (fewer than 32 rows or columns) can be rounded
            differently.

    Raises:
        ValueError: An option or a parameter is invalid.
    """

    is_divided: ClassVar = True  # over threads, if the matrices are small
    UNUSED_WITH: ClassVar = {
        "beta2": ("variance_reduction", (False,)),
        "cautious_weight_decay": ("weight_decay", (0, 0.0)),
        "adjust_weight_decay": ("weight_decay", (0, 0.0)),
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients | str = "quintic",
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        variance_reduction: bool | Literal["longer"] = False,
        beta2: float = 0.95,
        cautious_weight_decay: bool = False,
        adjust_weight_decay: bool = False,
        split_qkv: bool | Literal["heads"] = False,
        batched: bool | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("momentum", momentum)):
            _expect(value >= 0, name, value, "0 or more")
        _expect(0 <= beta2 < 1, "beta2", beta2, "from 0 to below 1")
        _expect(ns_steps >= 1, "ns_steps", ns_steps, "from 1")
        _expect(adjust_lr_fn in (None, *RATIOS), "adjust_lr_fn", adjust_lr_fn, ", ".join(RATIOS))
        _expect(variance_reduction in (False, True, "longer"), "variance_reduction", variance_reduction, VARIANCES)
        known = not isinstance(ns_coefficients, str) or ns_coefficients in COEFFICIENTS
        _expect(known, "ns_coefficients", ns_coefficients, f"{', '.join(COEFFICIENTS)}, or three numbers")
        self._row_splits: dict[Tensor, RowSplits] = {}
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "variance_reduction": variance_reduction,
            "beta2": beta2,
            "cautious_weight_decay": cautious_weight_decay,
            "adjust_weight_decay": adjust_weight_decay,
            "split_qkv": split_qkv,
            "batched": batched,
        }
        super().__init__(params, defaults)
        divisible = not split_qkv or bool(self._row_splits)
        _expect(divisible, "split_qkv", split_qkv, "false, because no module declares row_splits")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for param in param_group["params"]:
            if param.ndim not in (2, 3):
                raise ValueError(
                    f"Muon needs matrices or stacks of matrices, with 2 or 3 dimensions; a parameter has the shape "
                    f"{tuple(param.shape)}"
                )
        if isinstance(param_group, ParamGroup):
            self._row_splits |= {param_group["params"][i]: rows for i, rows in param_group.row_splits.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_row_splits": self._row_splits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # for checkpoints of torch.optim.Muon: continue as it would
            for name, value in ABSENT.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_precision(self, state_dict, "second_moment")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step.

        Args:
            closure: Evaluates the model again and returns the loss.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            alike = list(self._alike(group))
            if len(alike) > 1 and all(is_small(params[0]) for params, _ in alike):
                self._step_on_threads(alike, group)
                continue
            for params, sizes in alike:
                self._step(params, sizes, group)
        return loss

    def _step_on_threads(self, alike: list[tuple[list[Tensor], list[int]]], group: dict[str, Any]) -> None:
        """The steps of small matrices on the CPU side by side: their operators are too short to be divided."""

        def step(of: tuple[list[Tensor], list[int]]) -> None:
            with torch.no_grad():  # a setting of a thread
                self._step(*of, group)

        list(single_threads(torch.get_num_threads()).map(step, alike))

    def _alike(self, group: dict[str, Any]) -> Iterator[tuple[list[Tensor], list[int]]]:
        """Parameters of one shape, up to a limit, and the rows of the matrices that they consist of."""
        alike: dict[Any, list[Tensor]] = {}
        for param in group["params"]:
            if param.grad is not None:
                alike.setdefault((param.shape, param.device, *self._sizes(param, group["split_qkv"])), []).append(param)
        for (shape, device, *sizes), params in alike.items():
            n = max(1, (MOST_AT_ONCE if _batched(group, device) else MOST_ONE_BY_ONE) // shape.numel())
            for start in range(0, len(params), n):
                yield params[start : start + n], sizes

    def _sizes(self, param: Tensor, split: bool | Literal["heads"]) -> list[int]:
        splits = self._row_splits.get(param) if split else None
        if splits is None:
            return [param.shape[-2]]
        return [size for heads in splits for size in (heads if split == "heads" else [sum(heads)])]

    def _step(self, params: list[Tensor], sizes: list[int], group: dict[str, Any]) -> None:
        grads: list[Any] = [param.grad for param in params]
        states = [self.state[param] for param in params]
        for grad, state in zip(grads, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
        buffers = [_local(state["momentum_buffer"]) for state in states]
        updates = _momentum([_local(grad) for grad in grads], buffers, group["momentum"], group["nesterov"])
        if _batched(group, params[0].device) and not hasattr(params[0], "to_local"):
            whole = list(torch.stack(list(updates)).to(PRECISION).unbind())  # a few kernels for all matrices
        else:
            whole = [_whole(update.to(PRECISION), param) for update, param in zip(updates, params, strict=True)]
        parts = [list(part) for part in zip(*(tensor.split(sizes, dim=-2) for tensor in whole), strict=True)]
        schedule = iterations(group["ns_coefficients"], group["ns_steps"])
        directions = _orthogonalized(parts, schedule, group["eps"], _batched(group, whole[0].device))
        if group["variance_reduction"]:
            directions = _with_equal_lines(directions, states, group["beta2"], group["variance_reduction"] == "longer")
        ratios = [RATIOS[group["adjust_lr_fn"] or "original"](size, whole[0].shape[-1]) for size in sizes]
        if len(parts) == 1:
            (direction,), (ratio,) = directions, ratios
        else:  # concatenated again
            scaled = [_exact(part) * ratio for part, ratio in zip(directions, ratios, strict=True)]
            direction, ratio = torch.cat(scaled, dim=-2), 1.0

        lr, decay = group["lr"], group["lr"] * group["weight_decay"]
        if group["adjust_weight_decay"]:
            decay = _adjusted(decay, sizes, ratios, params[0])
        locals_ = [_local(param) for param in params]
        if isinstance(direction, Tensor) and locals_[0] is params[0]:
            weights = torch.stack(locals_)
            _update(weights, direction, lr * ratio, decay, group["cautious_weight_decay"])
            torch._foreach_copy_(locals_, list(weights.unbind()))
            return
        for param, weights, step in zip(params, locals_, direction, strict=True):
            _update(weights, _share(step, param), lr * ratio, decay, group["cautious_weight_decay"])


def _update(weights: Tensor, step: Tensor, lr: float, decay: Any, cautious: bool) -> None:
    """Weight decay, and a step, in place."""
    if cautious:
        weights.mul_(1 - decay * (step * weights >= 0).to(weights.dtype))
    else:
        weights.mul_(1 - decay)
    weights.add_(step, alpha=-lr)


# Options that torch.optim.Muon does not have, with the values that keep its behaviour.
ABSENT = {
    "variance_reduction": False,
    "beta2": 0.95,
    "cautious_weight_decay": False,
    "adjust_weight_decay": False,
    "split_qkv": False,
    "batched": None,
}
VARIANCES = "false, true, longer"
RATIOS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


def _expect(accepted: bool, name: str, value: Any, what: str) -> None:
    if not accepted:
        raise ValueError(f"{name}: {value!r} cannot be used; accepted: {what}")


def _batched(group: dict[str, Any], device: torch.device) -> bool:
    return device.type != "cpu" if group["batched"] is None else group["batched"]


def _momentum(grads: list[Tensor], buffers: list[Tensor], momentum: float, nesterov: bool) -> Sequence[Tensor]:
    """Updates the buffers in place and returns the directions."""
    torch._foreach_lerp_(buffers, grads, 1 - momentum)
    return torch._foreach_lerp(grads, buffers, momentum) if nesterov else buffers


def _with_equal_lines(
    directions: list[Alike], states: list[dict[str, Any]], beta2: float, along_longer: bool
) -> list[Alike]:
    """Divides rows by the root of their averaged mean square, and keeps each matrix's norm.

    Args:
        directions: The direction of each part of the matrices.
        states: The state of each parameter; `second_moment` has the averages of all parts, (..., n, 1).
        beta2: Decay rate of the averages.
        along_longer: Whether columns are divided in place of rows, in parts with more columns than rows.
    """
    exact = [_exact(part) for part in directions]
    turned = [along_longer and part.shape[-1] > part.shape[-2] for part in exact]
    exact = [part.mT if turn else part for part, turn in zip(exact, turned, strict=True)]
    mean_squares = torch.cat([part.square().mean(dim=-1, keepdim=True) for part in exact], dim=-2)
    for state, mean_square in zip(states, mean_squares, strict=True):
        if "second_moment" not in state:
            state["second_moment"] = torch.zeros_like(mean_square)
    averages = [state["second_moment"] for state in states]
    torch._foreach_lerp_(averages, list(mean_squares.unbind()), 1 - beta2)
    moments = torch.stack(averages)
    equal: list[Alike] = []
    sizes = [part.shape[-2] for part in exact]
    for part, moment, turn in zip(exact, moments.split(sizes, dim=-2), turned, strict=True):
        lines = part / moment.sqrt().clamp(min=1e-10)
        lines = lines * (frobenius_norms(part) / frobenius_norms(lines).clamp(min=1e-10))
        equal.append(lines.mT if turn else lines)
    return equal


def _adjusted(decay: float, sizes: list[int], ratios: list[float], param: Any) -> Any:
    """Weight decay times the ratio of the learning rate: a number, or one for each row of this rank's weights."""
    if len(set(ratios)) == 1:
        return decay * ratios[0]
    local = _local(param)
    rows = torch.cat([local.new_full((size, 1), decay * ratio) for size, ratio in zip(sizes, ratios, strict=True)])
    return rows if local is param else _share(rows.expand(param.shape).contiguous(), param)


def _orthogonalized(
    parts: list[list[Tensor]], schedule: tuple[list[Coefficients], float], eps: float, batched: bool
) -> list[Alike]:
    """Orthogonalises matrices and stacks of matrices.

    On the CPU one by one, like torch.optim.Muon: a batched product may be summed in another order.
    """
    steps, scale = schedule
    if not batched:
        return [[_one_by_one(tensor, steps, scale, eps) for tensor in part] for part in parts]
    results: list[Alike] = list(parts)
    alike: dict[Any, list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault(part[0].shape, []).append(i)
    for shape, indices in alike.items():
        matrices = torch.stack([tensor for i in indices for tensor in parts[i]]).view(-1, *shape[-2:])
        done = orthogonalize(matrices, steps, scale, eps).reshape(len(indices), -1, *shape)
        for i, result in zip(indices, done, strict=True):
            results[i] = result
    return results


def _one_by_one(tensor: Tensor, steps: list[Coefficients], scale: float, eps: float) -> Tensor:
    if tensor.ndim == 2:
        return orthogonalize(tensor, steps, scale, eps)
    return torch.stack([orthogonalize(matrix, steps, scale, eps) for matrix in tensor])


def _exact(tensors: Alike) -> Tensor:
    """The tensors, stacked, in float32 or a more exact type."""
    tensor = tensors if isinstance(tensors, Tensor) else torch.stack(tensors)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _local(tensor: Any) -> Tensor:
    """The part of a tensor on this rank."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _whole(local: Tensor, param: Any) -> Tensor:
    """Gathers the values of a whole parameter from each rank's share."""
    if not hasattr(param, "to_local"):
        return local
    from torch.distributed.tensor import DTensor  # not loaded without ranks

    shape, stride = param.shape, param.stride()
    return DTensor.from_local(local, param.device_mesh, param.placements, shape=shape, stride=stride).full_tensor()


def _share(whole: Tensor, param: Any) -> Tensor:
    """This rank's share of the values of a whole parameter."""
    if not hasattr(param, "to_local"):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(whole, param.device_mesh, [Replicate()] * param.device_mesh.ndim, run_check=False)
    return replicated.redistribute(placements=param.placements).to_local()
