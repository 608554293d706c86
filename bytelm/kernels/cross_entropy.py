"""Cross-entropy in one pass over the logits, which are replaced by their gradients.

Written in Triton, which torch for GPUs includes. With a vocabulary of tens of thousands the loss is bound by memory:
the logits of 61,440 tokens are 6 GB in bf16. A program reads a row, sums its exponentials, reads the row again from the
cache, and writes the gradients over it. Arithmetic is in float32; memory keeps the type of the logits. It takes 1.1
times as long as reading and writing the logits once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

BLOCK = 8192  # logits that a program processes at a time
WARPS = 32  # two programs fill a processor, and the rows of all programs fit into the cache
LANE = 8  # adjacent logits that a thread loads together; they share a running maximum
PROGRAMS = 1024  # of the rescaling kernel, which usually has no work
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # not -inf, because -inf - -inf is NaN


@triton.jit
def _cross_entropy(
    logits: tl.tensor,
    targets: tl.tensor,
    factor: tl.tensor,
    nats: tl.tensor,
    rows: tl.int32,
    vocab_size: tl.int32,
    differentiate: tl.constexpr,
    block: tl.constexpr,
    lane: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocab_size
    target = tl.load(targets + row)
    at_target = tl.load(logits + target).to(tl.float32)
    offsets = tl.arange(0, block)
    # Each lane keeps its own maximum and sum; they are combined once, at the end. The first read asks the cache to keep
    # the row, the second to evict it.
    largest = tl.full([block // lane], LOWEST, tl.float32)
    total = tl.zeros([block // lane], tl.float32)
    for start in range(0, vocab_size, block):
        inside = start + offsets < vocab_size
        x = tl.load(logits + start + offsets, mask=inside, other=LOWEST, eviction_policy="evict_last")
        x = tl.reshape(x.to(tl.float32) * LOG2_E, [block // lane, lane])
        larger = tl.maximum(largest, tl.max(x, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(x - larger[:, None]), 1)
        largest = larger
    top = tl.max(largest, 0)
    log_normaliser = top + tl.log2(tl.sum(total * tl.exp2(largest - top), 0))
    tl.store(nats + row, log_normaliser / LOG2_E - at_target)
    if differentiate:
        scale = tl.load(factor) / rows
        tl.debug_barrier()  # all lanes must read the target's logit before it is overwritten
        for start in range(0, vocab_size, block):
            inside = start + offsets < vocab_size
            x = tl.load(logits + start + offsets, mask=inside, other=LOWEST, eviction_policy="evict_first")
            gradient = tl.exp2(x.to(tl.float32) * LOG2_E - log_normaliser) * scale
            gradient = gradient.to(logits.dtype.element_ty)
            tl.store(logits + start + offsets, gradient, mask=inside, eviction_policy="evict_first")
        tl.debug_barrier()  # the target's gradient is written last
        gradient = (tl.exp2(at_target * LOG2_E - log_normaliser) - 1) * scale
        tl.store(logits + target, gradient.to(logits.dtype.element_ty))


@triton.jit
def _rescale(values: tl.tensor, size: tl.int64, wanted: tl.tensor, had: tl.tensor, block: tl.constexpr) -> None:
    ratio = tl.load(wanted) / tl.load(had)
    if ratio != 1.0:  # otherwise memory is not touched
        for start in range(tl.program_id(0).to(tl.int64) * block, size, tl.num_programs(0).to(tl.int64) * block):
            offsets = start + tl.arange(0, block)
            x = tl.load(values + offsets, mask=offsets < size)
            tl.store(values + offsets, (x.to(tl.float32) * ratio).to(x.dtype), mask=offsets < size)


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, factor: Tensor) -> Tensor:
        rows, vocab_size = logits.shape
        nats = torch.empty(rows, dtype=torch.float32, device=logits.device)
        differentiate = ctx.needs_input_grad[0]
        _cross_entropy[(rows,)](
            logits, targets, factor, nats, rows, vocab_size, differentiate, block=BLOCK, lane=LANE, num_warps=WARPS
        )
        if differentiate:
            torch.autograd.graph.increment_version(logits)  # autograd then reports a later use of the original logits
            ctx.gradients, ctx.factor, ctx.had = logits.detach(), factor, factor.clone()
        return nats.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradients = ctx.gradients
        _rescale[(PROGRAMS,)](gradients, gradients.numel(), gradient.contiguous(), ctx.had, block=BLOCK)
        ctx.factor.copy_(gradient)
        ctx.gradients = None
        return gradients, None, None


def cross_entropy(logits: Tensor, targets: Tensor, factor: Tensor) -> Tensor:
    """Mean cross-entropy in nats. If a gradient is needed, it overwrites the logits.

    Args:
        logits: (N, vocab_size), of any floating type, on a GPU.
        targets: (N,), int64.
        factor: Expected factor of the result before it is differentiated, (), float32. A correct value avoids a pass
            over the gradients. The backward pass stores the actual factor in it.

    Returns:
        The loss, (), float32.
    """
    return _CrossEntropy.apply(logits.contiguous(), targets.contiguous(), factor)
