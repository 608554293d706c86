"""The warm-up pass: gets compilation and first-call costs over with, before a budget's clock starts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer


def warm_up(trainer: Trainer, pl_module: LightningModule, batch: Any) -> float:
    """Runs forward and backward twice and forgets both.

    The first pass compiles, picks kernels and fills caches; the second shows how long a step takes. Weights, optimizer,
    buffers, random state and gradients are afterwards as they were.

    Args:
        trainer: Its strategy runs the passes, as it runs training steps.
        pl_module: The module that is trained.
        batch: A batch on the module's device.

    Returns:
        Seconds of the second pass.
    """
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    devices = [] if pl_module.device.type == "cpu" else [pl_module.device]
    seconds = 0.0
    with torch.random.fork_rng(devices, device_type=pl_module.device.type if devices else "cuda"), _muted(pl_module):
        for _ in range(2):
            start = time.perf_counter()
            output: Any = trainer.strategy.training_step(batch, 0)
            loss = output["loss"] if isinstance(output, dict) else output
            trainer.strategy.backward(loss, trainer.optimizers[0])
            wait_for_device(trainer)
            seconds = time.perf_counter() - start
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
def _muted(pl_module: LightningModule) -> Iterator[None]:
    """Makes a module's own log calls do nothing, as Lightning refuses them outside of its steps."""
    names = ("log", "log_dict")
    for name in names:
        setattr(pl_module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(pl_module, name)
