"""The mean of gradients that lie in the memories of several GPUs.

A program reads from all of them at once, over the links between the GPUs: no copy is made. Arithmetic is in float32.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # elements that a program processes


@triton.jit
def _add(a: tl.tensor, b: tl.tensor, out: tl.tensor, size: tl.int64, scale: tl.float32, block: tl.constexpr) -> None:
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < size
    total = tl.load(a + offsets, mask=inside).to(tl.float32) + tl.load(b + offsets, mask=inside).to(tl.float32)
    tl.store(out + offsets, (total * scale).to(out.dtype.element_ty), mask=inside)


def mean(parts: Sequence[Tensor], out: Tensor) -> None:
    """Writes the mean of two or more tensors.

    Args:
        parts: (n,), in the memory of any GPU that this one can read.
        out: (n,), in this GPU's memory.
    """
    total = parts[0]
    for number, part in enumerate(parts[1:], start=2):
        scale = 1 / len(parts) if number == len(parts) else 1.0
        _add[(triton.cdiv(out.numel(), BLOCK),)](total, part, out, out.numel(), scale, block=BLOCK, num_warps=8)
        total = out
