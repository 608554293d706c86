"""Kernels for GPUs, where those of PyTorch and torch.compile are slower than need be; a file each.

`cross_entropy.py` is in Triton, which comes with torch for GPUs. `attention.py` and `gelu.py` call libraries of kernels
for Hopper, the extra `hopper`. Nothing here is imported where it is not used, so that all else runs without.
"""

from importlib import import_module

import torch

from bytelm.errors import ConfigError
from bytelm.system.compiler import assume_constant_result

HOPPER = (9, 0)  # compute capability of H100 and H200


def load_for_hopper(kernels: str, key: str, part: str) -> None:
    """Imports the kernels of a part, if there is a GPU that they are for.

    Args:
        kernels: The module here that has them.
        key: The part's key in a config.
        part: Its name.

    Raises:
        ConfigError: What they need is not installed.
    """
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER):
        return
    try:
        import_module(f"{__name__}.{kernels}")
    except ImportError as error:
        reason = f'its kernels are not installed ({error}); pip install -e ".[hopper]" brings them'
        raise ConfigError(key, part, reason) from error


@assume_constant_result
def on_hopper(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors on this device and of this type are what the kernels for Hopper are for."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER
