"""Resume: puts a run that goes on exactly where its checkpoint left it.

Weights, optimizer, budget and data position are restored by those that they belong to. Here is what would be nobody's:
random states, Lightning's counters, a validation that was due when the run was cut, and the logs of the last step.
TensorBoard forgets that step and what the cut run had logged after it: whether its validation was logged before the cut
or not, each value is there once.
"""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.time_budget import TimeBudget
from bytelm.runs.checkpoints import CONFIG, Contents, set_counters
from bytelm.runs.logger import TensorBoardLogger


class Resume(Callback):
    """Saves and restores random states; makes up for the validation that a cut run still owes.

    Args:
        config: The run's config as plain values: checkpoints keep it, to be held against that of a run that goes on.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self._validated_step = -1
        self._random_states: list[dict[str, Any]] | None = None
        self._logged: dict[int, dict[str, float]] = {}
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        own = random_states()
        states = [own]
        if self._trainer is not None and self._trainer.world_size > 1:
            states = [own] * self._trainer.world_size
            torch.distributed.all_gather_object(states, own)
        loggers = self._trainer.loggers if self._trainer is not None else []
        logged = [logger.latest for logger in loggers if isinstance(logger, TensorBoardLogger)]
        return {"random_states": states, "validated_step": self._validated_step, "logged": dict(logged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for states in state_dict["random_states"]:
            check_random_states(states)
        self._random_states = state_dict["random_states"]
        self._validated_step = state_dict["validated_step"]
        self._logged = {
            step: {tag: float(value) for tag, value in values.items()} for step, values in state_dict["logged"].items()
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG] = self.config

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's counters to those after the last finished step."""
        contents = Contents(checkpoint, trainer.ckpt_path or "")
        if contents.has_budget:
            set_counters(checkpoint, contents.steps, trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        states = self._random_states or []
        if len(states) == trainer.world_size:
            set_random_states(states[trainer.global_rank])
        elif trainer.world_size > 1:  # a new run, or one with another number of ranks
            _seed_apart(trainer.global_rank)
        if not states:
            return
        steps = TimeBudget.of(trainer).steps
        # A run that was at its end is validated again even if it had been: the record needs the scores.
        validates = trainer.should_stop or (steps != self._validated_step and _is_due(trainer, steps))
        logged = self._logged.get(steps - 1, {})
        logged = {tag: value for tag, value in logged.items() if not (validates and tag.startswith("val/"))}
        for logger in trainer.loggers:
            if logged and isinstance(logger, TensorBoardLogger):
                logger.log_metrics(logged, steps - 1)
        if validates:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validated_step = TimeBudget.of(trainer).steps


def random_states() -> dict[str, Any]:
    """States of the generators that this process may draw from, as plain values and tensors."""
    of_numpy: Any = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = torch.tensor(of_numpy["state"]["key"].tolist())  # checkpoints hold no arrays of numpy
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": of_numpy,
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Makes the generators go on where `random_states` found them."""
    torch.set_rng_state(states["torch"].cpu())
    random.setstate(states["python"])
    np.random.set_state(_of_numpy(states))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def check_random_states(states: dict[str, Any]) -> None:
    """Tries `set_random_states` on other generators; whatever they raise, they cannot go on from there."""
    torch.Generator().set_state(states["torch"].cpu())
    random.Random().setstate(states["python"])
    np.random.RandomState().set_state(_of_numpy(states))


def _of_numpy(states: dict[str, Any]) -> dict[str, Any]:
    of_numpy = states["numpy"]
    return {**of_numpy, "state": {**of_numpy["state"], "key": of_numpy["state"]["key"].tolist()}}


def _seed_apart(rank: int) -> None:
    """Lets ranks draw different numbers. Until now they drew the same, for the same initial weights."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) + rank
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _is_due(trainer: Trainer, steps: int) -> bool:
    """Whether a validation follows the step that a checkpoint was written after."""
    every = trainer.val_check_batch
    return isinstance(every, int) and steps * trainer.accumulate_grad_batches % every == 0
