"""Kernels for the CPU in C++, which a machine's own compiler builds when they are first used.

The result is kept in a cache folder, by source, compiler and processor: $XDG_CACHE_HOME/bytelm/kernels or
~/.cache/bytelm/kernels. Building one takes a second. Without a compiler there are no kernels, and their callers use
torch's operators, after a note.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytelm.config.messages import note

DTYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}  # that kernels are built for
COMPILERS = ("g++", "clang++", "c++")
# The object is made and linked by two commands: linked with -ffast-math, a library would change how the whole process
# rounds denormal numbers.
COMPILE = ("-O3", "-march=native", "-ffast-math", "-std=c++17", "-fPIC", "-pthread", "-c")
LINK = ("-shared", "-pthread")


@lru_cache
def library(name: str) -> ctypes.CDLL | None:
    """Returns the library of `name`.cpp in this folder; None if it cannot be built or loaded here.

    Args:
        name: Name of the source file, without its ending.
    """
    compiler = next((found for each in COMPILERS if (found := shutil.which(each))), None)
    if compiler is None or sys.platform == "win32":
        _note(f"no C++ compiler was found ({', '.join(COMPILERS)})")
        return None
    sources = [Path(__file__).with_name(each) for each in (f"{name}.cpp", "common.h")]
    try:
        known_by = (*(source.read_bytes() for source in sources), compiler.encode(), _processor())
        target = _cache() / f"{name}-{hashlib.sha256(b'|'.join(known_by)).hexdigest()[:16]}.so"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = _build(compiler, sources, Path(folder))
                os.replace(made, target)  # other processes may build it at the same time
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        _note(f"{name}.cpp could not be built: {error}")
        return None


@lru_cache
def _note(reason: str) -> None:
    """Says once that there are no kernels."""
    note(f"{reason}; PyTorch's operators replace bytelm's kernels for the CPU, and take several times as long")


def call(name: str, function: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Calls a function of a library.

    Args:
        name: Name of the library.
        function: Name of the function, without the type at its end.
        dtype: The type, one of DTYPES.
        arguments: Tensors, integers and structures.
    """
    passed = [
        ctypes.c_void_p(each.data_ptr())
        if isinstance(each, Tensor)
        else ctypes.c_int64(each)
        if isinstance(each, int)
        else ctypes.byref(each)
        for each in arguments
    ]
    getattr(library(name), f"{function}_{DTYPES[dtype]}")(*passed)


def _build(compiler: str, sources: list[Path], folder: Path) -> Path:
    for source in sources:
        shutil.copy(source, folder)
    for arguments in ((*COMPILE, sources[0].name, "-o", "object.o"), (*LINK, "object.o", "-o", "library.so")):
        subprocess.run([compiler, *arguments], cwd=folder, check=True, capture_output=True)
    return folder / "library.so"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytelm" / "kernels"


def _processor() -> bytes:
    """What -march=native depends on: folders in a network may be those of several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n")
    except OSError:
        return platform.processor().encode()
    return b"".join(next((line for line in lines if line.startswith(key)), b"") for key in (b"model name", b"flags"))
