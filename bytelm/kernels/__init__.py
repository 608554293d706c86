"""Kernels that are faster than those of PyTorch and torch.compile, one a file.

`cross_entropy.py` uses Triton, which torch for GPUs includes. `attention.py` and `gelu.py` use libraries of kernels for
Hopper (the extra `hopper`), which ahead.py compiles. Each of these files is imported only when it is used.
`ngram_memory.cpp` is for the CPU; cpu.py builds it with the machine's compiler. bytelm runs without any of them.
"""

import os
import warnings
from functools import cache
from importlib import import_module

import torch

from bytelm.errors import ConfigError
from bytelm.system.compiler import assume_constant_result

HOPPER = (9, 0)  # compute capability of H100 and H200


def load_for_hopper(kernels: str, key: str, part: str) -> None:
    """Imports the kernels of a part, if there is a Hopper GPU.

    Args:
        kernels: Name of the module in this package.
        key: The part's key in a config.
        part: Its name.

    Raises:
        ConfigError: A package that they need is not installed.
    """
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER):
        return
    try:
        _import(kernels)
    except ImportError as error:
        reason = f'its kernels are not installed ({error}); run pip install -e ".[hopper]"'
        raise ConfigError(key, part, reason) from error


def _import(kernels: str) -> None:
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # else every process compiles them
    import_module(f"{__name__}.{kernels}")


@cache
def _loaded_for_hopper(kernels: str) -> bool:
    try:
        _import(kernels)
    except ModuleNotFoundError:
        return False
    except Exception as error:  # of any kind: these packages are betas
        reason = f"the kernels in bytelm/kernels/{kernels}.py do not work here, PyTorch's are used: {error}"
        warnings.warn(reason, stacklevel=2)
        return False
    return True


@assume_constant_result
def optional_on_hopper(kernels: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels for Hopper that only save time can be used: they are installed, and GPU and type are right.

    Args:
        kernels: Name of the module in this package. It is imported the first time.
        device: The tensors' device.
        dtype: Their type.
    """
    return on_hopper(device, dtype) and _loaded_for_hopper(kernels)


@assume_constant_result
def on_hopper(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels for Hopper support tensors on this device and of this type."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER
