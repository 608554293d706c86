"""State that a module's passes may change, saved and restored: tensors, attributes, random states."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn


@contextmanager
def unchanged(pl_module: LightningModule, attributes: bool) -> Iterator[None]:
    """At its end, restores buffers and random states, and removes gradients.

    Args:
        pl_module: The module.
        attributes: Whether to restore parameters and attributes too; see Attributes.
    """
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    kept = Attributes(pl_module) if attributes else None
    devices = [] if pl_module.device.type == "cpu" else [pl_module.device]
    device_type = pl_module.device.type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=device_type), isolate_rng(include_cuda=False):
        yield
    pl_module.zero_grad()
    if kept is not None:
        kept.restore()
    with torch.no_grad():
        for name, buffer in pl_module.named_buffers():
            buffer.copy_(buffers[name])


class Attributes:
    """The attributes of a module and of all its submodules, including metrics.

    The copy contains numbers, text and references, the values of tensors and generators, and the contents of lists,
    dicts, sets and deques, at any depth. The contents of other objects are not copied. Objects keep their identity,
    which code compiled by torch.compile checks.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._restores: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}  # by id; the objects are kept alive, so their ids are not reused
        for each in module.modules():
            self._keep(vars(each))

    def restore(self) -> None:
        """Restores everything."""
        with torch.no_grad():
            for restore in self._restores:
                restore()

    def _keep(self, value: Any) -> None:
        if id(value) in self._seen or not isinstance(value, CHANGEABLE):
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            copy = value.detach().clone()
            self._restores.append(lambda: value.copy_(copy))
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._restores.append(lambda: value.set_state(state))
        elif isinstance(value, random.Random):
            numbers = value.getstate()
            self._restores.append(lambda: value.setstate(numbers))
        elif isinstance(value, dict):
            items = dict(value)
            self._restores.append(lambda: _refill(value, value.update, items))
            for inner in items.values():
                self._keep(inner)
        else:
            content = list(value)
            if isinstance(value, list | deque):
                self._restores.append(lambda: _refill(value, value.extend, content))
            elif isinstance(value, set):
                self._restores.append(lambda: _refill(value, value.update, content))
            for inner in content:
                self._keep(inner)


CHANGEABLE = (Tensor, torch.Generator, random.Random, dict, list, deque, set, tuple)  # tuples because of their contents


def cloned(batch: Any) -> Any:
    """Copies a batch, for a training step that may change it: new containers, and copies of tensors.

    Args:
        batch: Tensors in containers, or an object with a method `clone`.
    """
    if not isinstance(batch, Tensor) and callable(getattr(batch, "clone", None)):
        return batch.clone()
    return apply_to_collection(batch, Tensor, Tensor.clone)  # not deepcopy, which copies the whole base of a view


def _refill(container: Any, fill: Callable[[Any], None], content: Any) -> None:
    container.clear()
    fill(content)
