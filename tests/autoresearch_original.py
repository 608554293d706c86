"""The definitions of a clone of karpathy/autoresearch, without the runs that importing its scripts would start."""

import ast
import os
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

CLONE = os.environ.get("BYTELM_AUTORESEARCH")
needs_clone = pytest.mark.skipif(not CLONE, reason="BYTELM_AUTORESEARCH names no clone of karpathy/autoresearch")
KEPT = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign


def definitions(file, **names):
    """The imports, constants, functions and classes of a script, as a module.

    Args:
        file: Name of the script.
        names: Names that it would import or compute, such as the kernel of its attention.
    """
    module = types.ModuleType(f"original_{file.removesuffix('.py')}")
    sys.modules[module.__name__] = module  # dataclasses look it up
    vars(module).update(names)
    for node in ast.parse((Path(CLONE) / file).read_text()).body:
        if not isinstance(node, KEPT) or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names):
            continue
        if isinstance(node, ast.FunctionDef):  # compiled ones run as they are
            node.decorator_list = [one for one in node.decorator_list if "compile" not in ast.unparse(one)]
        # Without packages that are not installed, and values that only a run with a GPU has.
        with suppress(ImportError, NameError, AttributeError):
            exec(compile(ast.Module([node], []), file, "exec"), vars(module))
            if getattr(node, "targets", None) and ast.unparse(node.targets[0]) == "t_start":
                break  # from here on the script runs
    return module


def flash_attn_func(q, k, v, causal, window_size):
    """What the original's kernel computes: (B, T, n_heads, head_dim), a window of keys before each query."""
    assert causal
    time = torch.arange(q.shape[1])
    distance = time[:, None] - time[None, :]
    inside = (distance >= 0) & (distance <= window_size[0])
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=inside, enable_gqa=True).transpose(1, 2)


def training():
    """The definitions of train.py, whose attention computes in plain PyTorch."""
    kernels = types.SimpleNamespace(flash_attn_interface=types.SimpleNamespace(flash_attn_func=flash_attn_func))
    return definitions("train.py", cap=None, get_kernel=lambda _: kernels, repo="", fa3=kernels.flash_attn_interface)
