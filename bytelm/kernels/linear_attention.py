"""Kernels of flash-linear-attention (Triton) for linear attentions, if the extra `fla` is installed.

They differentiate rows of any length and return no state. Inputs are (B, n_heads, T, dim), as in
bytelm/parts/linear_attention.py; the library's are (B, T, n_heads, dim).
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from bytelm.config.messages import note
from bytelm.system.compiler import assume_constant_result, disable


@cache
def library() -> ModuleType | None:
    """The library's operations; None, with a note, if they cannot be imported."""
    try:
        from fla import ops
    except Exception as error:  # with some versions of triton, its kernels raise other errors than ImportError
        reason = f"{type(error).__name__}: {error}"
        note(
            "linear attentions run in plain PyTorch, because flash-linear-attention cannot be imported "
            f'({reason}); pip install -e ".[fla]" installs it'
        )
        return None
    return ops


@assume_constant_result
def _supports(device: str, dtype: torch.dtype) -> bool:
    return device == "cuda" and dtype in (torch.bfloat16, torch.float16) and library() is not None


def support(q: Tensor) -> bool:
    """Whether there are kernels for these queries: on a GPU, in bf16 or float16, with the library installed."""
    return _supports(q.device.type, _type(q))


@disable
def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See Retention, bytelm/parts/linear_attention.py."""
    return _outputs(_library().chunk_retention(*_inputs(q, k, v), scale=q.shape[-1] ** -0.5))


@disable
def gated(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """See GatedLinearAttention, bytelm/parts/linear_attention.py."""
    decays = log_decay.transpose(1, 2).contiguous()
    return _outputs(_library().chunk_gla(*_inputs(q, k, v), g=decays, scale=q.shape[-1] ** -0.5))


@disable
def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """See DeltaNet, bytelm/parts/linear_attention.py; `beta` is (B, n_heads, T)."""
    betas = beta.transpose(1, 2).to(_type(q)).contiguous()
    return _outputs(_library().chunk_delta_rule(*_inputs(q, k, v), beta=betas, scale=1.0))


def _library() -> ModuleType:
    ops = library()
    assert ops is not None, "support says whether there is one"
    return ops


def _type(q: Tensor) -> torch.dtype:
    device = q.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype


def _inputs(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2).to(_type(tensor)).contiguous() for tensor in tensors]


def _outputs(returned: tuple[Tensor, Tensor | None]) -> Tensor:
    return returned[0].transpose(1, 2)
