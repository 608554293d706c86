"""Meaning of `trainer.strategy: ddp` and `fsdp` in bytelm, on CPUs and GPUs alike.

fsdp distributes weights, gradients and optimizer state over the ranks. Lightning's strategy of that name wraps FSDP1,
which torch supports only on GPUs and which joins the parameters of a module into one flat tensor. Here every parameter
is sharded separately (FSDP2): optimizers receive matrices, and tests on CPU ranks run the same code as GPUs.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pydoc import locate
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.nn.parallel import DistributedDataParallel

from bytelm.config.suggestions import hint
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.sharded_step import ShardedStep

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class FSDP(ModelParallelStrategy):
    """Fully sharded data-parallel training (Zhao et al. 2023, arXiv:2304.11277).

    A checkpoint is one file with whole tensors, as with any other strategy: a run can resume under another strategy or
    with another number of ranks.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        # Every rank has its own data; Lightning's default splits the matrices within a host.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


def shard(gpt: GPT, mesh: "DeviceMesh", precision: str) -> None:
    """Distributes a network over the ranks, block by block: a block's weights are whole while it computes.

    Args:
        gpt: The network.
        mesh: The ranks, with a dimension `data_parallel`.
        precision: The trainer's; under `bf16-mixed`, weights are sent as bfloat16, and gradients are summed in float32.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard  # takes a second, for few runs

    if isinstance(gpt, FSDPModule):
        return  # Lightning calls this for every fit, validate and test
    mixed = precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
    fully_shard(gpt, mesh=mesh["data_parallel"], mp_policy=policy)


_DDP: dict[str, Any] = {"gradient_as_bucket_view": True}  # gradients are stored once, in the exchanged buffers
# Buffers (tables of positions, counts of a memory) are equal on all ranks and stay equal: sending rank 0's before every
# batch would only take time. torch 2.13 has a new name for this option.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_DDP["forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"] = False

STRATEGIES: dict[str, Callable[[], Strategy]] = {"ddp": partial(DDPStrategy, **_DDP), "fsdp": FSDP}

# Classes that need no options, so that a value may be their name alone.
WITHOUT_OPTIONS: dict[str, Callable[[], Strategy]] = {
    "DDPStrategy": DDPStrategy,
    "FSDP": FSDP,
    "ShardedStep": ShardedStep,
}

ONE_RANK = "a notebook, or interactive Python, has one rank; a script and the command have several"

# Lightning's strategies that bytelm trains with unchanged.
LIGHTNINGS = ("single_device", *(f"ddp_find_unused_parameters_{value}" for value in ("true", "false")), "auto")
ACCEPTED = (
    f"accepted: {', '.join(['auto', *STRATEGIES, *LIGHTNINGS[:-1]])}, or a class as {{class_path: …, init_args: {{…}}}}"
)
NOT_MADE_FOR = f"checkpoints, signals and clocks of bytelm are not made for it; {ACCEPTED}"
# The reasons why others are rejected, by the beginning of their names.
REJECTED = {
    "fsdp": "it is FSDP1, which joins parameters to flat tensors; accepted: fsdp, bytelm's, which shards each",
    "modelparallel": "its ranks do not average gradients unless `data_parallel_size` is their number; accepted: fsdp",
    **{
        f"ddp_{how}": "its ranks are copies of one process, which gets their signals and results too late; accepted: "
        "ddp, which starts a process for each rank, from a script or the command"
        for how in ("fork", "spawn", "notebook")
    },
    **dict.fromkeys(("deepspeed", "xla", "single_xla", "single_tpu", "singledevicexla"), NOT_MADE_FOR),
}


def make_strategy(given: Any) -> Any:
    """Returns the strategy for a value of `trainer.strategy`.

    Args:
        given: A name, an import path of a class without options, a strategy, or None.

    Returns:
        A strategy; the given value, if Lightning makes a strategy from it.

    Raises:
        ConfigError: bytelm cannot train with it, or it is unknown.
    """
    if isinstance(given, str) and "." in given:
        cls = locate(given)
        if not (inspect.isclass(cls) and issubclass(cls, Strategy)):
            raise ConfigError("trainer.strategy", given, f"it is not a strategy; {ACCEPTED}")
        _check(cls.__name__, given, cls)
        return cls()
    if isinstance(given, str):
        if given in STRATEGIES:
            return STRATEGIES[given]()
        if given in WITHOUT_OPTIONS:
            return WITHOUT_OPTIONS[given]()
        _check(given, given)
        if given not in LIGHTNINGS:
            raise ConfigError("trainer.strategy", given, hint(given, [*STRATEGIES, *LIGHTNINGS]) + ACCEPTED)
    elif isinstance(given, Strategy):
        _check(type(given).__name__, type(given).__name__, type(given))
        method = given._start_method if isinstance(given, DDPStrategy) else "popen"
        if method != "popen":
            raise ConfigError("trainer.strategy.start_method", method, REJECTED["ddp_fork"])
    return given


def _check(name: str, given: str, cls: type | None = None) -> None:
    """Rejects strategies of Lightning; strategies derived from them are the user's own."""
    if cls is not None and not cls.__module__.startswith("lightning."):
        return
    reason = next((why for beginning, why in REJECTED.items() if name.lower().startswith(beginning)), None)
    if reason is not None:
        raise ConfigError("trainer.strategy", given, reason)


def check_devices(strategy: Any, devices: Any) -> None:
    """Rejects several devices under the strategy `single_device`, which uses only one of them, without a message.

    Args:
        strategy: The value of `trainer.strategy`.
        devices: The value of `trainer.devices`.

    Raises:
        ConfigError: There are several devices.
    """
    several = len(devices) > 1 if isinstance(devices, list) else str(devices).isdecimal() and int(devices) > 1
    if strategy == "single_device" and several:
        raise ConfigError("trainer.strategy", strategy, f"trainer.devices is {devices}; accepted: ddp, fsdp, auto")


def check_launch(strategy: Strategy) -> None:
    """Rejects ranks that are copies of one process, which Lightning chooses for several devices in a notebook.

    Args:
        strategy: The strategy of a Trainer.

    Raises:
        ConfigError: It would make such ranks.
    """
    if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
        raise ConfigError("trainer.devices", strategy.num_processes, f"{ONE_RANK}; accepted: 1")


def strategy_name(strategy: Strategy) -> str:
    """Returns a config's name for a strategy: `single`, `ddp`, `fsdp`; for others, the name of their class."""
    if isinstance(strategy, FSDP):
        return "fsdp"
    if isinstance(strategy, DDPStrategy) and not isinstance(strategy, ShardedStep):
        return "ddp"
    return "single" if isinstance(strategy, SingleDeviceStrategy) else type(strategy).__name__
