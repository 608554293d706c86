"""Cross-entropy in one pass over the logits, which become their own gradients.

In Triton, which comes with torch for GPUs. Over tens of thousands of tokens it is bound by memory: the logits of 61,440
of them are 6 GB in bf16. A program reads a row, adds up its exponentials, and reads it again, from the cache, to write
the gradients over it. All arithmetic is in float32; nothing in memory is. It takes 1.1 times as long as reading and
writing the logits once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

BLOCK = 8192  # logits that a program handles at a time
WARPS = 32  # so many that two programs fill a processor, and all rows being worked on fit into the cache
LANE = 8  # neighbouring logits, those that a thread loads at once, which share a running maximum
PROGRAMS = 1024  # of a kernel that mostly finds nothing to do
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # not -inf, of which the difference to itself would be NaN


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
    # Each lane keeps a maximum and a sum of its own; they meet once, at the end. The cache is told to keep what is read
    # now, and afterwards to let go of it.
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
        tl.debug_barrier()  # all lanes have read the target's logit before any is written over
        for start in range(0, vocab_size, block):
            inside = start + offsets < vocab_size
            x = tl.load(logits + start + offsets, mask=inside, other=LOWEST, eviction_policy="evict_first")
            gradient = tl.exp2(x.to(tl.float32) * LOG2_E - log_normaliser) * scale
            gradient = gradient.to(logits.dtype.element_ty)
            tl.store(logits + start + offsets, gradient, mask=inside, eviction_policy="evict_first")
        tl.debug_barrier()  # the target's is the last to be written
        gradient = (tl.exp2(at_target * LOG2_E - log_normaliser) - 1) * scale
        tl.store(logits + target, gradient.to(logits.dtype.element_ty))


@triton.jit
def _rescale(values: tl.tensor, size: tl.int64, wanted: tl.tensor, had: tl.tensor, block: tl.constexpr) -> None:
    ratio = tl.load(wanted) / tl.load(had)
    if ratio != 1.0:  # else nothing is read or written
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
            torch.autograd.graph.increment_version(logits)  # whoever needs them as they were is told
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
    """Mean cross-entropy in nats. Where a gradient is wanted, it takes the place of the logits.

    Args:
        logits: (N, vocab_size), of any floating type, on a GPU.
        targets: (N,), int64.
        factor: What the result will be multiplied with before it is differentiated, (), float32. Only a guess, which
            saves a pass over the gradients where it is right; the true one is left in its place.

    Returns:
        A number, float32.
    """
    return _CrossEntropy.apply(logits.contiguous(), targets.contiguous(), factor)
