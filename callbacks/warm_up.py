"""The warm-up pass: does compilation and first-call work before a budget's clock starts."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from bytelm.callbacks.snapshot import unchanged
from bytelm.data.base import token_data
from bytelm.system.postponed import is_loaded

# Methods of a module that report a step, or are called in one. Lightning rejects the first two outside its steps.
HEARD = ("log", "log_dict", "on_before_backward", "on_after_backward")
MANY_GRAPHS = 10_000  # for one function; by default, torch stops compiling it after 8


def why_not(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Returns the reason why no pass can be run and undone; None if one can.

    Args:
        trainer: The trainer whose strategy would run the pass.
        pl_module: The module that is trained.
    """
    name = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        return f"{name} optimizes manually, so a pass would change its weights"
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        return f"{name}.training_step takes its batches from an iterator, so a pass would use them up"
    if trainer.strategy.handles_gradient_accumulation:
        return f"{type(trainer.strategy).__name__} counts batches by itself, so a pass would be taken for one of them"
    return None


def is_repeatable(pl_module: LightningModule) -> bool:
    """Returns whether a module's training step changes only gradients, buffers and random states.

    The class that defines the step declares it with `repeatable_step = True`. A subclass that overrides the step must
    declare it again.

    Args:
        pl_module: The module that is trained.
    """
    owner = next(cls for cls in type(pl_module).__mro__ if "training_step" in vars(cls))
    return bool(vars(owner).get("repeatable_step", False))


def warm_up(
    trainer: Trainer,
    pl_module: LightningModule,
    first_batch: Callable[[], Any],
    later: Iterable[None] = (),
    keep_attributes: bool = False,
) -> float:
    """Runs forward and backward once for each kind of later step, then twice as in the first step; keeps nothing.

    The passes compile, choose kernels and fill caches; the last one measures the time of a step. Afterwards, buffers,
    random states and gradients are restored. Callbacks and loggers are not called during the passes.

    Args:
        trainer: Its strategy runs the passes in the same way as training steps.
        pl_module: The module that is trained.
        first_batch: Returns the first training batch, on the module's device.
        later: Each iteration sets the values in which some later steps differ (batch size, sequence length, options of
            parts); the end restores the values of the first step.
        keep_attributes: Whether parameters and attributes of modules are restored too (snapshot.Attributes).

    Returns:
        Seconds of the last pass.
    """
    steps_differ = False
    with unchanged(pl_module, keep_attributes), _unheard(trainer, pl_module):
        for _ in later:
            steps_differ = True
            with static_shapes():
                _run_pass(trainer, first_batch())
        with static_shapes() if steps_differ else nullcontext():
            _run_pass(trainer, first_batch())
        return _run_pass(trainer, first_batch())


def next_batch(trainer: Trainer) -> Any:
    """Returns the first training batch, on the device; the data are put back to their position."""
    loader: Any = trainer.train_dataloader
    position = loader.state_dict()
    batch = next(iter(loader))
    loader.load_state_dict(position)
    return trainer.strategy.batch_to_device(batch)


def data_position(trainer: Trainer) -> dict[str, Any] | None:
    """Returns the position of the training data, if `load_state_dict` of their loader can restore it.

    Only bytelm's own data guarantee this. Other loaders may have a state too, but a second iterator over them can take
    batches, workers or random numbers from the one that trains.
    """
    loader: Any = trainer.train_dataloader
    return None if token_data(trainer) is None else loader.state_dict()


def wait_for_device(trainer: Trainer) -> None:
    """Waits until a device, which runs behind the program, has finished all its work."""
    if trainer.strategy.root_device.type != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def static_shapes() -> Iterator[None]:
    """Context in which torch.compile makes one graph for each size, as with `dynamic=False`, without a limit.

    By default, it would make one graph for all sizes from the second one on, which is slower for each of them.
    """
    if not is_loaded("torch._dynamo"):
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
    """Runs forward and backward; returns the time in seconds."""
    step = trainer.lightning_module.training_step
    index = (0,) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else ()  # Lightning's own rule
    start = time.perf_counter()
    output: Any = trainer.strategy.training_step(batch, *index)
    loss = output["loss"] if isinstance(output, Mapping) else output
    if loss is not None:  # None: the step is skipped
        trainer.strategy.backward(loss, trainer.optimizers[0])
    wait_for_device(trainer)
    return time.perf_counter() - start


@contextmanager
def _unheard(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Context in which no callbacks, loggers or hooks of the module are called for a step."""
    own = vars(pl_module)
    before = {name: own[name] for name in HEARD if name in own}
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    for name in HEARD:
        object.__setattr__(pl_module, name, lambda *args, **kwargs: None)
    trainer.callbacks, trainer.loggers = [], [DummyLogger() for _ in loggers]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        for name in HEARD:
            object.__delattr__(pl_module, name)
        own.update(before)
