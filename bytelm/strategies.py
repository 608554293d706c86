"""Meaning of `trainer.strategy: ddp` and `fsdp` in bytelm, on CPUs and GPUs alike.

fsdp distributes weights, gradients and optimizer state over the ranks. Lightning's strategy of that name wraps FSDP1,
which torch supports only on GPUs and which joins the parameters of a module into one flat tensor. Here every parameter
is sharded separately (FSDP2): optimizers receive matrices, and tests on CPU ranks run the same code as GPUs.

FlatDDP is ddp with one exchange of all gradients after the backward pass, instead of one for every 25 MB.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from pydoc import locate
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError
from bytelm.gpt import GPT

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


DEFAULT_TIMEOUT = timedelta(minutes=30)  # torch's


class FlatDDP(DDPStrategy):
    """ddp whose ranks exchange all gradients together, after the backward pass.

    A network that is compiled as one graph returns all its gradients at once. DistributedDataParallel then copies them
    into buffers of 25 MB and exchanges one buffer after the other. Here a few kernels copy them into a few large
    buffers; the copies of a buffer run while another one is exchanged. A parameter without a gradient gets zeros, where
    ddp fails. Gradients must not be sparse.

    Args:
        exchange: Type in which gradients are exchanged; default: their own. `bfloat16` instead of float32 exchanges
            half as many bytes, and rounds the sum over the ranks. Under bf16-mixed, the gradients of matrices have no
            more digits before this sum.
        pieces: Number of pieces.
        process_group_backend: Lightning's option: the library that exchanges; default: NCCL on GPUs, gloo on CPUs.
        timeout: Lightning's option: how long a rank waits for the others.
    """

    def __init__(
        self,
        exchange: Literal["float32", "bfloat16"] | None = None,
        pieces: PositiveInt = 4,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self.exchange = exchange
        self.pieces = pieces
        self._is_last = True  # of the batches of a step
        self._buffers: list[GradientBuffer] = []

    def configure_ddp(self) -> None:
        """Sends rank 0's weights and buffers to all ranks; the model is not wrapped."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            distributed.broadcast(tensor.detach(), 0)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # The last layers first, as their gradients are.
        dtype = None if self.exchange is None else getattr(torch, self.exchange)
        self._buffers = buffers(trained[::-1], dtype, self.pieces)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Context in which the backward pass of a batch exchanges nothing, because its step has further batches."""
        self._is_last = False
        try:
            yield
        finally:
            self._is_last = True

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the gradients, and their means over the ranks after the last batch of a step."""
        self.pre_backward(closure_loss)
        assert self.lightning_module is not None
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        self.precision_plugin.backward(closure_loss, self.lightning_module, optimizer, *args, **kwargs)
        if self._is_last:  # before hooks that read gradients
            exchange(self._buffers)
        closure_loss = self.precision_plugin.post_backward(closure_loss, self.lightning_module)
        self.post_backward(closure_loss)
        return closure_loss


class GradientBuffer:
    """A buffer for the gradients of some parameters, which ranks exchange at once.

    Args:
        parameters: The parameters, on one device.
        dtype: The buffer's type.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], dtype: torch.dtype) -> None:
        self.parameters = parameters
        sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in parameters]
        self.buffer = torch.zeros(sum(sizes), dtype=dtype, device=parameters[0].device)
        places = self.buffer.split(sizes)
        self.views = [
            place[: parameter.numel()].view_as(parameter) for place, parameter in zip(places, parameters, strict=True)
        ]

    def send(self) -> Any:
        """Starts the exchange of the gradients; returns the object to wait for."""
        torch._foreach_copy_(self.views, self._gradients())
        if self.buffer.device.type == "cuda":
            return distributed.all_reduce(self.buffer, distributed.ReduceOp.AVG, async_op=True)
        self.buffer.div_(distributed.get_world_size())  # gloo has no AVG
        return distributed.all_reduce(self.buffer, async_op=True)

    def receive(self) -> None:
        """Writes the means over the ranks into the gradients."""
        torch._foreach_copy_(self._gradients(), self.views)

    def _gradients(self) -> list[Tensor]:
        for parameter in self.parameters:
            if parameter.grad is None:  # of no use in this step on this rank; others may have one
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


ALIGNED = 64  # elements; places in a buffer begin at multiples of it, for fast copies


def buffers(parameters: list[torch.nn.Parameter], dtype: torch.dtype | None, pieces: int) -> list[GradientBuffer]:
    """Divides parameters, in their order, into pieces of about equal size, with a buffer for each.

    Args:
        parameters: Parameters of one device.
        dtype: The buffers' type; None: that of their parameters.
        pieces: Number of pieces; each type of parameters in a piece has its own buffer.
    """
    total, taken = sum(parameter.numel() for parameter in parameters), 0
    divided: dict[tuple[int, torch.dtype], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        divided.setdefault((pieces * taken // total, parameter.dtype), []).append(parameter)
        taken += parameter.numel()
    return [GradientBuffer(some, dtype or own) for (_, own), some in divided.items()]


@torch.no_grad()
def exchange(buffers: list[GradientBuffer]) -> None:
    """Replaces gradients by their means over the ranks."""
    exchanged = [(buffer, buffer.send()) for buffer in buffers]
    for buffer, work in exchanged:
        work.wait()
        buffer.receive()


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
WITHOUT_OPTIONS: dict[str, Callable[[], Strategy]] = {"DDPStrategy": DDPStrategy, "FSDP": FSDP, "FlatDDP": FlatDDP}

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
        "ddp, which starts a process for each rank"
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
            raise ConfigError("trainer.strategy", given, f"it is no strategy; {ACCEPTED}")
        _check(cls.__name__, given, cls)
        return cls()
    if isinstance(given, str):
        if given in STRATEGIES:
            return STRATEGIES[given]()
        if given in WITHOUT_OPTIONS:
            return WITHOUT_OPTIONS[given]()
        _check(given, given)
        if given not in LIGHTNINGS:
            close = get_close_matches(given, [*STRATEGIES, *LIGHTNINGS], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError("trainer.strategy", given, hint + ACCEPTED)
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


def strategy_name(strategy: Strategy) -> str:
    """Returns a config's name for a strategy: `single`, `ddp`, `fsdp`; for others, the name of their class."""
    if isinstance(strategy, FSDP):
        return "fsdp"
    if isinstance(strategy, DDPStrategy):
        return "FlatDDP" if isinstance(strategy, FlatDDP) else "ddp"
    return "single" if isinstance(strategy, SingleDeviceStrategy) else type(strategy).__name__
