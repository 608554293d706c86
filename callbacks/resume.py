"""Resume: continues a run exactly from the state of its checkpoint.

Weights, optimizer, budget and data position are restored by their owners. This callback restores everything without an
owner: random states, Lightning's counters, a validation that was due when the run was cut, and the logs of the last
step. TensorBoard drops that step and everything that the cut run logged after it: each value appears once, whether or
not the validation was logged before the cut. A Resume is the FinalValidation of its run: at the end of a run, too, a
validation may still be due.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from bytelm.callbacks.final_validation import FinalValidation, validate
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.callbacks.warm_up import data_position
from bytelm.data.base import token_data
from bytelm.data.epochs import limited
from bytelm.log_steps import ends_step, log_waiting
from bytelm.runs.checkpoints import CONFIG, Contents, set_counters
from bytelm.runs.logger import TensorBoardLogger
from bytelm.system.random_states import (
    check_random_states,
    random_states,
    seed_apart,
    set_random_states,
    states_of_torch,
    storable,
)


class Resume(FinalValidation):
    """Saves and restores random states; runs a validation, or the end of an epoch, that is still due.

    Args:
        config: The run's config as plain values. Checkpoints store it, to compare it with the config of a resumed run.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self._ended_step: int | None = -1  # the step after which the hooks of an epoch's end were called; None: unknown
        self._random_states: list[dict[str, Any]] | None = None
        self._logged: dict[int, dict[str, float]] = {}
        self._trainer: Trainer | None = None
        self._step: int | None = None  # the last step that has ended, as Lightning counts; the next two are of its end
        self._position: dict[str, Any] | None = None
        self._random: dict[str, Any] = {}
        self._all_states = False  # whether states are noted that only a user's code changes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        own = random_states()
        if self._trainer is not None and self._step == self._trainer.global_step:
            own |= self._random  # in the middle of a step, or of a validation, which is run again after resuming
        own = storable(own)
        states = [own]
        if self._trainer is not None and self._trainer.world_size > 1:
            states = [own] * self._trainer.world_size
            torch.distributed.all_gather_object(states, own)
        if self._trainer is not None:
            log_waiting(self._trainer)
        loggers = self._trainer.loggers if self._trainer is not None else []
        logged = [logger.latest for logger in loggers if isinstance(logger, TensorBoardLogger)]
        return {
            "random_states": states,
            "validated_step": self._validated_step,
            "ended_step": self._ended_step,
            "logged": dict(logged),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for states in state_dict["random_states"]:
            check_random_states(states)
        self._random_states = state_dict["random_states"]
        self._validated_step = state_dict["validated_step"]
        self._ended_step = state_dict.get("ended_step")  # runs of version 0.1.0 had no epochs
        self._logged = {
            step: {tag: float(value) for tag, value in values.items()} for step, values in state_dict["logged"].items()
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG] = self.config
        if self._position is None or self._step != trainer.global_step:
            return  # nothing was trained, or the step has just ended
        # In the middle of a step, as after an error, some of its batches have been taken.
        checkpoint.get(type(trainer.datamodule).__qualname__, {}).update(self._position)  # type: ignore[attr-defined]
        if loops := checkpoint.get("loops"):
            loops["fit_loop"]["state_dict"]["combined_loader"] = [self._position]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's counters to their values after the last finished step."""
        contents = Contents(checkpoint, trainer.ckpt_path or "")
        if contents.has_budget:
            set_counters(checkpoint, contents.steps, trainer.accumulate_grad_batches, _batches_per_epoch(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        states = self._random_states or []
        if len(states) == trainer.world_size:
            set_random_states(states[trainer.global_rank])
        elif trainer.world_size > 1:  # a new run, or a different number of ranks
            seed_apart(trainer.global_rank)
        self._all_states = any(map(_is_users, [trainer.lightning_module, *trainer.callbacks]))  # type: ignore[attr-defined]
        self._note(trainer)
        if not states:
            return
        steps = TimeBudget.of(trainer).steps
        # A run that had reached its end is always validated again: the record needs the scores.
        validates = trainer.should_stop or (steps != self._validated_step and _is_due(trainer, steps))
        logged = self._logged.get(steps - 1, {})
        logged = {tag: value for tag, value in logged.items() if not (validates and tag.startswith("val/"))}
        for logger in trainer.loggers:
            if logged and isinstance(logger, TensorBoardLogger):
                logger.log_metrics(logged, steps - 1)
        if validates:
            validate(trainer)
        if self._ended_step not in (None, steps) and (trainer.should_stop or _ends_epoch(trainer, steps)):
            _end_epoch(trainer, steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx):
            self._note(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if data_position(trainer) == self._position:  # it may also be among the batches of an accumulated step
            self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        """Notes the state after a step, in which a checkpoint that is saved during the next one resumes."""
        self._step, self._position = trainer.global_step, data_position(trainer)
        self._random = random_states() if self._all_states else states_of_torch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended_step = TimeBudget.of(trainer).steps


def _is_users(made: Any) -> bool:
    return not type(made).__module__.startswith(("bytelm.", "lightning."))


def _end_epoch(trainer: Trainer, steps: int) -> None:
    """Runs the hooks that follow the last batch of an epoch, or of a run, that was cut between the two."""
    progress = trainer.fit_loop.epoch_progress
    if _ends_epoch(trainer, steps):  # Lightning considered it finished, and would start the next one
        counts: tuple[Any, ...] = (progress.total, progress.current)
        for count in counts:
            count.processed -= 1
            count.completed -= 1
    trainer.fit_loop.on_advance_end()


def _batches_per_epoch(trainer: Trainer) -> int | None:
    """Returns the batches of one rank in an epoch of a run that is about to resume."""
    data = token_data(trainer)
    return None if data is None else limited(data.epoch_batches(), trainer.limit_train_batches)


def _ends_epoch(trainer: Trainer, steps: int) -> bool:
    return steps > 0 and steps * trainer.accumulate_grad_batches % trainer.num_training_batches == 0


def _is_due(trainer: Trainer, steps: int) -> bool:
    """Returns whether a validation follows the step that a checkpoint was written after: Lightning's own rule."""
    every, every_epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    batches = steps * trainer.accumulate_grad_batches
    if not isinstance(every, int) or not batches:
        return False
    if every_epochs is None:
        return batches % every == 0
    epoch, batch = divmod(batches - 1, int(trainer.num_training_batches))
    return (epoch + 1) % every_epochs == 0 and (batch + 1) % every == 0
