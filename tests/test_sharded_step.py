"""ShardedStep: what it rejects, the interfaces it uses, and its kernel. Whole runs are in test_ranks.py."""

import inspect
import subprocess
import sys

import pytest
from torch._C._distributed_c10d import _SymmetricMemory

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.sharded_step import ShardedStep
from bytelm.strategies import make_strategy, strategy_name


class OwnClipping(LanguageModel):
    def configure_gradient_clipping(self, *args, **kwargs):
        pass


def test_it_has_the_name_of_its_class():
    strategies = [make_strategy(name) for name in ("ShardedStep", "bytelm.sharded_step.ShardedStep")]
    assert all(isinstance(strategy, ShardedStep) for strategy in strategies)
    assert strategy_name(strategies[0]) == "ShardedStep"


@pytest.mark.parametrize(
    ("module", "precision", "accepted"),
    [
        (OwnClipping, "32-true", "accepted with OwnClipping: ddp"),
        (LanguageModel, "16-mixed", "accepted with trainer.precision 16-mixed: ddp"),
        (LanguageModel, "64-true", "accepted with trainer.precision 64-true: ddp"),
    ],
)
def test_modules_and_precisions_that_need_all_gradients_are_rejected(module, precision, accepted):
    with pytest.raises(ConfigError, match=accepted):
        ShardedStep()._check(module(GPT(16, 2, 1)), precision)


def test_several_machines_are_rejected():
    strategy = ShardedStep()
    strategy.num_nodes = 2
    with pytest.raises(ConfigError, match="accepted on several machines: ddp, fsdp"):
        strategy._check(LanguageModel(GPT(16, 2, 1)), "32-true")


def test_torchs_symmetric_memory_has_the_functions_that_are_used():
    """They are not part of torch's stable interface."""
    from torch.distributed import _symmetric_memory as symmetric

    assert callable(symmetric.empty)
    assert list(inspect.signature(symmetric.rendezvous).parameters)[:2] == ["tensor", "group"]
    assert "get_buffer" in dir(_SymmetricMemory)
    assert "barrier" in dir(_SymmetricMemory)


INTERPRETED = """
import torch
from bytelm.kernels.mean import mean

for ranks in (2, 3):
    parts = [torch.randn(5000).bfloat16() for _ in range(ranks)]
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.full((5000,), torch.nan, dtype=dtype)
        mean(parts, out)
        expected = torch.stack([part.float() for part in parts]).mean(0)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
"""


def test_the_kernel_interpreted_computes_means(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which is read when the kernels are
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True)


def test_the_kernel_compiles_for_hopper_wherever_there_is_triton():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bytelm.kernels.mean import BLOCK, _add

    types = ["*bf16", "*bf16", "*fp32", "i64", "fp32", "constexpr"]
    places = {(_add.arg_names.index("block"),): BLOCK}
    source = ASTSource(_add, dict(zip(_add.arg_names, types, strict=True)), places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert ".target sm_90" in compiled.asm["ptx"]
