"""The warm-up pass: does compilation and first-call work before a budget's clock starts."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

MANY_GRAPHS = 10_000  # of one function, where there are usually 8 at most before torch gives up on compiling it


def warm_up(trainer: Trainer, pl_module: LightningModule, batch: Any, later: Iterable[None] = ()) -> float:
    """Runs forward and backward as each kind of later step will, then twice as the first step will; keeps nothing.

    The passes compile, choose kernels and fill caches; the last one shows how long a step takes. Weights, optimizer,
    buffers, random state and gradients are afterwards as they were.

    Args:
        trainer: Its strategy runs the passes, as it runs training steps.
        pl_module: The module that is trained.
        batch: The first batch, on the module's device.
        later: In each iteration it sets what some later steps differ in (batch size, sequence length, options of
            parts), and in the end the values of the first step.

    Returns:
        Seconds of the last pass.
    """
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    devices = [] if pl_module.device.type == "cpu" else [pl_module.device]
    steps_differ = False
    with torch.random.fork_rng(devices, device_type=pl_module.device.type if devices else "cuda"), _muted(pl_module):
        for _ in later:
            steps_differ = True
            with static_shapes():
                _run_pass(trainer, next_batch(trainer))
        with static_shapes() if steps_differ else nullcontext():
            _run_pass(trainer, batch)
        seconds = _run_pass(trainer, batch)
    pl_module.zero_grad()
    with torch.no_grad():
        for name, buffer in pl_module.named_buffers():
            buffer.copy_(buffers[name])
    return seconds


def next_batch(trainer: Trainer) -> Any:
    """The batch that training begins with, on the device; the loader stays where it was."""
    loader: Any = trainer.train_dataloader
    position = data_position(trainer)
    batch = next(iter(loader))
    if position is not None:
        loader.load_state_dict(position)
    return trainer.strategy.batch_to_device(batch)


def data_position(trainer: Trainer) -> dict[str, Any] | None:
    """Where the training data stand, if they know it; their `load_state_dict` takes it back."""
    loader: Any = trainer.train_dataloader
    return loader.state_dict() if hasattr(loader, "state_dict") else None


def wait_for_device(trainer: Trainer) -> None:
    """Returns when a device, which runs behind the program, has done all that it was given."""
    if trainer.strategy.root_device.type != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def static_shapes() -> Iterator[None]:
    """Inside, torch.compile makes a graph of its own for each size, as `dynamic=False` does, however many there are.

    By default it would make one graph for all sizes from the second one on, which is slower for each of them.
    """
    if "torch._dynamo" not in sys.modules:
        yield  # nothing is compiled, and loading it takes seconds
        return
    with torch._dynamo.config.patch(
        automatic_dynamic_shapes=False,
        assume_static_by_default=True,
        recompile_limit=MANY_GRAPHS,
        accumulated_recompile_limit=MANY_GRAPHS,
    ):
        yield


def _run_pass(trainer: Trainer, batch: Any) -> float:
    """Runs forward and backward; returns the seconds they took."""
    start = time.perf_counter()
    output: Any = trainer.strategy.training_step(batch, 0)
    loss = output["loss"] if isinstance(output, dict) else output
    trainer.strategy.backward(loss, trainer.optimizers[0])
    wait_for_device(trainer)
    return time.perf_counter() - start


@contextmanager
def _muted(pl_module: LightningModule) -> Iterator[None]:
    """Makes a module's own log calls do nothing, as Lightning rejects them outside of its steps."""
    names = ("log", "log_dict")
    for name in names:
        setattr(pl_module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(pl_module, name)
