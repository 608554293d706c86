"""Training steps on several threads, each with a part of the rows.

By default an operator divides its work over torch's threads, which wait for each other at its end. A small network has
hundreds of operators in a step, of some hundred microseconds each. Waiting, and the operators and the Python code that
use a single thread, then take much of the time. Here, each thread computes the loss and the gradients of its rows, with
operators of one thread, and waits once in a step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bytelm.system.single_threads import single_threads

MakeLoss = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets, (B, T), to the mean loss of their tokens."""


class RowThreads:
    """Threads that compute losses and gradients of rows on the CPU.

    The result depends on the number of threads only by rounding, and not on which of them is faster: gradients are
    added in the order of the rows.

    Args:
        n_threads: Number of threads.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def loss(self, make_loss: MakeLoss, inputs: Tensor, targets: Tensor, params: Sequence[Tensor]) -> Tensor:
        """The mean loss of rows; its backward pass only adds gradients that are computed here.

        Args:
            make_loss: Computes the mean loss of some rows; it is called on several threads at once.
            inputs: (B, T).
            targets: (B, T).
            params: Tensors that get gradients.

        Returns:
            The loss, ().
        """
        loss: Tensor = _Loss.apply(self, make_loss, inputs, targets, *params)
        return loss

    def gradients(
        self, make_loss: MakeLoss, inputs: Tensor, targets: Tensor, params: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The mean loss of rows, and its gradients."""
        device = inputs.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def part(*rows: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
            # Autocast and whether gradients are computed are settings of a thread. Copies of weights in the type of
            # autocast are not shared, as each thread differentiates its own.
            enabled, dtype = autocast
            with torch.enable_grad(), torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
                loss = make_loss(*rows) * (len(rows[0]) / len(inputs))
            return loss.detach(), torch.autograd.grad(loss, params, allow_unused=True)

        n = min(self.n_threads, len(inputs))
        pool = single_threads(self.n_threads)
        losses, gradients = zip(*pool.map(part, inputs.tensor_split(n), targets.tensor_split(n)), strict=True)
        # Not in this thread: the threads of its operators would spin afterwards, beside the next part of the step.
        return torch.stack(losses).sum(), list(pool.map(_sum, zip(*gradients, strict=True)))


class _Loss(Function):
    @staticmethod
    def forward(
        ctx: Any, threads: RowThreads, make_loss: MakeLoss, inputs: Tensor, targets: Tensor, *params: Tensor
    ) -> Tensor:
        loss, ctx.gradients = threads.gradients(make_loss, inputs, targets, params)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own, ctx.gradients = ctx.gradients, None
        if gradient != 1:
            own = [None if each is None else each * gradient for each in own]
        return None, None, None, None, *own


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    total = None
    for each in gradients:
        if each is not None:
            total = each if total is None else total + each  # not in place: parameters can share a gradient
    return total
