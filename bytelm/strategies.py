"""What `trainer.strategy: ddp` and `fsdp` mean here, on CPUs and GPUs alike.

fsdp spreads weights, gradients and optimizer state over the ranks. Lightning's own of that name wraps FSDP1, which
torch keeps for GPUs alone and which joins the parameters of a module to one flat tensor; here every parameter is
sharded by itself (FSDP2), so that optimizers see matrices, and tests on CPU ranks run what GPUs run.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bytelm.errors import ConfigError
from bytelm.gpt import GPT


class FSDP(ModelParallelStrategy):
    """Fully sharded data-parallel training (Zhao et al. 2023, arXiv:2304.11277).

    A checkpoint is one file with whole tensors, as that of any other strategy: runs go on under another strategy or
    with another number of ranks.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        # Every rank has data of its own; Lightning's default splits the matrices within a host.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


def shard(gpt: GPT, mesh: DeviceMesh, precision: str) -> None:
    """Spreads a network over the ranks, block by block: a block's weights are whole while it computes.

    Args:
        gpt: The network.
        mesh: The ranks, with a dimension `data_parallel`.
        precision: The trainer's; under `bf16-mixed` weights travel as bfloat16, and gradients are summed in float32.
    """
    if isinstance(gpt, FSDPModule):
        return  # Lightning asks for every fit, validate and test
    mixed = precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
    fully_shard(gpt, mesh=mesh["data_parallel"], mp_policy=policy)


_DDP: dict[str, Any] = {"gradient_as_bucket_view": True}  # gradients lie where ranks exchange them, once
# Buffers (tables of positions, what a memory has counted) are alike on all ranks and stay so: sending rank 0's before
# every batch would be time for nothing. torch 2.13 has a new name for that.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_DDP["forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"] = False

STRATEGIES: dict[str, Callable[[], Strategy]] = {"ddp": partial(DDPStrategy, **_DDP), "fsdp": FSDP}


def check_strategy(given: Any) -> None:
    """Rejects Lightning's FSDPStrategy.

    Args:
        given: The value of `trainer.strategy`: a name, a strategy, or None.

    Raises:
        ConfigError: It is one.
    """
    name = given if isinstance(given, str) else type(given).__name__
    is_named = isinstance(given, str) and given.rpartition(".")[2].lower().startswith("fsdp") and given != "fsdp"
    if is_named or isinstance(given, FSDPStrategy):
        accepted = "it is FSDP1, which joins parameters to flat tensors; accepted: fsdp, bytelm's, which shards each"
        raise ConfigError("trainer.strategy", name, accepted)


def strategy_name(strategy: Strategy) -> str:
    """What a config calls a strategy: `single`, `ddp`, `fsdp`; of others the name of their class."""
    if isinstance(strategy, FSDP):
        return "fsdp"
    if isinstance(strategy, DDPStrategy):
        return "ddp"
    return "single" if isinstance(strategy, SingleDeviceStrategy) else type(strategy).__name__
