"""Kernels for the CPU in C++, which a machine's own compiler builds when they are first used.

The result is kept in a cache folder, by source, compiler and processor: $XDG_CACHE_HOME/bytelm/kernels or
~/.cache/bytelm/kernels. Building one takes a second. Without a compiler there are no kernels, and their callers use
torch's operators.
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
        return None
    source = Path(__file__).with_name(f"{name}.cpp").read_bytes()
    try:
        known_by = (source, compiler.encode(), _processor())
        target = _cache() / f"{name}-{hashlib.sha256(b'|'.join(known_by)).hexdigest()[:16]}.so"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = _build(compiler, source, Path(folder))
                os.replace(made, target)  # other processes may build it at the same time
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError):
        return None


def _build(compiler: str, source: bytes, folder: Path) -> Path:
    (folder / "source.cpp").write_bytes(source)
    for arguments in ((*COMPILE, "source.cpp", "-o", "object.o"), (*LINK, "object.o", "-o", "library.so")):
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
