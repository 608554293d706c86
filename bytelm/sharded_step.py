"""ShardedStep: ddp for the ranks of one machine, each of which makes a part of the optimizer's step.

With ddp all ranks average all gradients, and then all make the same step. Here the parameters are divided among the
ranks. A rank averages the gradients of its parameters, makes their step, and writes their weights into the memory of
the other ranks (ZeRO, stage 1: Rajbhandari et al. 2020, arXiv:1910.02054). Only the owner of a parameter has its
averaged gradient and its optimizer state.

Ranks read and write each other's memory; GPUs do so over the links between them, without NCCL. Under bf16 precision
gradients are sent in bfloat16, in which those of linear layers were computed, and averaged in float32.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from bytelm.errors import ConfigError

ALIGNMENT = 128  # elements; every parameter begins at a multiple of it
PRECISIONS = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "32-true": torch.float32}
"""The type in which gradients are sent, for each precision."""


class ShardedStep(DDPStrategy):
    """ddp with the optimizer's step divided among the ranks of one machine.

    A checkpoint has the whole optimizer state, as with ddp: a run can resume under another strategy or with another
    number of ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._averages = True

    def configure_ddp(self) -> None:
        module: Any = self.lightning_module
        precision = str(self.precision_plugin.precision)
        self._check(module, precision)
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                distributed.broadcast(tensor.data, 0)
            params = {name: param for name, param in module.named_parameters() if param.requires_grad}
            self._shares = _Shares(params, PRECISIONS[precision], self.root_device)

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                self._reject("its step is one of all parameters together; accepted with LBFGS: ddp")

    def post_backward(self, closure_loss: Tensor) -> None:
        if self._averages:
            self._shares.average()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Context of the batches of a step before the last: their gradients are only accumulated."""
        self._averages = False
        try:
            yield
        finally:
            self._averages = True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().optimizer_step(*args, **kwargs)
        self._shares.send_weights()
        return output

    def total_norm(self, norm: Tensor) -> Tensor:
        """Returns the norm of the gradients of all ranks; called on all ranks.

        Args:
            norm: The norm of this rank's gradients, ().
        """
        square = norm.to(self.root_device, torch.float32).square()
        distributed.all_reduce(square)
        return square.sqrt()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the state of all parameters; called on all ranks."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        numbers = {i for i, param in enumerate(params) if param in self._shares.own}
        others = {key: value for key, value in state["state"].items() if not isinstance(key, int)}
        whole: dict[Any, Any] = {}
        for rank in range(self.world_size):
            own = {i: state["state"][i] for i in numbers if i in state["state"]} if rank == self.global_rank else {}
            whole |= _broadcast(own, rank, self.root_device)
        return {**state, "state": {**dict(sorted(whole.items())), **others}}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            for param in [param for param in optimizer.state if param not in self._shares.own]:
                del optimizer.state[param]  # only its owner updates it

    def _check(self, module: nn.Module, precision: str) -> None:
        owner = next(cls for cls in type(module).__mro__ if "configure_gradient_clipping" in vars(cls))
        if not vars(owner).get("clips_by_total_norm", False):
            self._reject(f"a rank has only its share of the gradients; accepted with {type(module).__name__}: ddp")
        if precision not in PRECISIONS:
            self._reject(f"accepted with trainer.precision {precision}: ddp")
        if self.num_nodes > 1:
            self._reject("ranks write into each other's memory; accepted on several machines: ddp, fsdp")
        peers = [device for device in self.parallel_devices or [] if device != self.root_device]
        if self.root_device.type == "cuda" and not all(
            torch.cuda.can_device_access_peer(self.root_device, peer) for peer in peers
        ):
            self._reject("these GPUs cannot access each other's memory; accepted: ddp, fsdp")

    @staticmethod
    def _reject(reason: str) -> None:
        raise ConfigError("trainer.strategy", ShardedStep.__name__, reason)


class _Shares:
    """The parameters, divided among ranks, in memory that all ranks access.

    Args:
        params: The parameters by name. Their weights move into shared memory.
        sent_as: The type in which gradients are sent.
        device: This rank's device.

    Attributes:
        own: This rank's parameters.
    """

    def __init__(self, params: dict[str, nn.Parameter], sent_as: torch.dtype, device: torch.device) -> None:
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        shares: list[list[nn.Parameter]] = [[] for _ in range(ranks)]
        loads = [0] * ranks
        for param in sorted(params.values(), key=lambda param: -param.numel()):
            least = loads.index(min(loads))
            shares[least].append(param)
            loads[least] += param.numel()
        self._names = {param: name for name, param in params.items()}
        self._rank, self.own = rank, set(shares[rank])
        self._places: dict[nn.Parameter, slice] = {}
        self._parts: list[tuple[torch.dtype, slice]] = []  # of this rank's share, one for each type of weights
        end = 0
        for number, share in enumerate(shares):
            for dtype in dict.fromkeys(param.dtype for param in share):
                start = end
                for param in (param for param in share if param.dtype == dtype):
                    self._places[param] = slice(end, end + param.numel())
                    end += -(-param.numel() // ALIGNMENT) * ALIGNMENT
                if number == rank:
                    self._parts.append((dtype, slice(start, end)))
        self._gradients = _SharedTensor(end, sent_as, device)
        self._sent = [self._gradients.own[place].view_as(param) for param, place in self._places.items()]
        types = dict.fromkeys(param.dtype for param in self._places)  # not a set, whose order differs between ranks
        self._weights = {dtype: _SharedTensor(end, dtype, device) for dtype in types}
        for param, place in self._places.items():
            weights = self._weights[param.dtype].own[place].view_as(param)
            weights.copy_(param)
            param.data = weights
        self._averages: list[Tensor] = []
        self._own_gradients: list[tuple[nn.Parameter, Tensor]] = []
        for dtype, part in self._parts:
            average = torch.zeros(part.stop - part.start, dtype=dtype, device=device)
            self._averages.append(average)
            for param in (param for param in shares[rank] if param.dtype == dtype):
                start = self._places[param].start - part.start
                self._own_gradients.append((param, average[start : start + param.numel()].view_as(param)))

    def average(self) -> None:
        """Replaces the gradients of this rank's parameters by their averages, and removes those of the others."""
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for param, sent in zip(self._places, self._sent, strict=True):
            if param.grad is None:
                reason = f"{self._names[param]} has no gradient in a step; accepted: ddp_find_unused_parameters_true"
                raise ConfigError("trainer.strategy", ShardedStep.__name__, reason)
            to, of = by_type.setdefault(param.grad.dtype, ([], []))
            to.append(sent)
            of.append(param.grad)
        for to, of in by_type.values():
            torch._foreach_copy_(to, of)
        self._gradients.barrier()
        for (_, part), average in zip(self._parts, self._averages, strict=True):
            _mean([tensor[part] for tensor in self._gradients.of_ranks], average)
        self._gradients.barrier()  # until all ranks have read, no gradients of a next pass are written
        for param in self._places:
            param.grad = None
        for param, gradient in self._own_gradients:
            param.grad = gradient

    def send_weights(self) -> None:
        """Writes the weights of this rank's parameters into the memory of the other ranks."""
        for dtype, part in self._parts:
            weights = self._weights[dtype]
            for rank, theirs in enumerate(weights.of_ranks):
                if rank != self._rank:
                    theirs[part].copy_(weights.own[part])
        self._gradients.barrier()


class _SharedTensor:
    """A tensor of each rank, in memory that all ranks access.

    Args:
        size: Its number of elements.
        dtype: Its type.
        device: This rank's device.

    Attributes:
        own: This rank's tensor, (size,).
        of_ranks: The tensors of all ranks.
        barrier: Makes each device (a CPU: its program) wait until the others have done the work submitted before.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        ranks = range(distributed.get_world_size())
        self.barrier: Callable[[], None]
        if device.type == "cuda":
            from torch.distributed import _symmetric_memory as symmetric  # takes a second, for few runs

            self.own = symmetric.empty(size, dtype=dtype, device=device)
            group = distributed.group.WORLD
            assert group is not None
            self._handle = symmetric.rendezvous(self.own, group)
            self.of_ranks = [self._handle.get_buffer(rank, (size,), dtype) for rank in ranks]
            self.barrier = self._handle.barrier
        else:
            with tempfile.TemporaryDirectory() as own_folder:
                folder = [own_folder]
                distributed.broadcast_object_list(folder, 0)
                paths = [str(Path(folder[0], str(rank))) for rank in ranks]
                self.own = torch.from_file(paths[distributed.get_rank()], shared=True, size=size, dtype=dtype)
                distributed.barrier()
                self.of_ranks = [torch.from_file(path, shared=True, size=size, dtype=dtype) for path in paths]
                distributed.barrier()  # then the files are not needed
            self.barrier = distributed.barrier
        self.own.zero_()


def _mean(parts: list[Tensor], out: Tensor) -> None:
    if out.device.type == "cuda" and len(parts) > 1:
        from bytelm.kernels.mean import mean  # needs triton, which only torch for GPUs includes

        mean(parts, out)
    else:
        out.copy_(torch.stack([part.float() for part in parts]).mean(dim=0))


def _broadcast(state: dict[Any, Any], source: int, device: torch.device) -> dict[Any, Any]:
    """Sends the optimizer state of some parameters to all ranks.

    Args:
        state: The state by the parameters' numbers; that of other ranks than the source is not used.
        source: The rank that sends.
        device: This rank's device.
    """
    sends = source == distributed.get_rank()

    def is_sent_apart(value: Any) -> bool:  # from device to device
        return isinstance(value, Tensor) and value.device.type != "cpu"

    outline = [
        {
            key: {name: value.to("meta") if is_sent_apart(value) else value for name, value in values.items()}
            for key, values in state.items()
        }
    ]
    distributed.broadcast_object_list(outline, source)
    received: dict[Any, Any] = {key: dict(values) for key, values in outline[0].items()}
    for key, values in received.items():
        for name, value in values.items():
            if is_sent_apart(value):
                tensor = state[key][name].contiguous() if sends else torch.empty_like(value, device=device)
                distributed.broadcast(tensor, source)
                values[name] = tensor
    return received
