"""Ranks: agreement on a number between the programs of all ranks, while their devices work."""

import torch
from lightning.pytorch import Trainer
from torch import distributed


class Ranks:
    """Exchanges numbers between ranks. Every method is called on all ranks together.

    On one machine the numbers go from program to program (gloo). NCCL would send them after all work that the devices
    still have to do. Several machines use it nevertheless: gloo would need to know which network connects them.

    Args:
        trainer: The trainer, whose ranks have found each other.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._several = trainer.world_size > 1
        self._group = None
        self._device = torch.device("cpu")
        if not self._several or distributed.get_backend() == "gloo":
            return
        if trainer.num_nodes == 1:
            self._group = distributed.new_group(backend="gloo")
        else:
            self._device = trainer.strategy.root_device

    def first(self, value: float) -> float:
        """Returns rank 0's value."""
        if not self._several:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self._device)
        distributed.broadcast(tensor, 0, group=self._group)
        return tensor.item()

    def largest(self, value: int) -> int:
        """Returns the largest value of all ranks."""
        if not self._several:
            return value
        tensor = torch.tensor(value, device=self._device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._group)
        return int(tensor)

    def smallest(self, value: int) -> int:
        """Returns the smallest value of all ranks."""
        return -self.largest(-value)
