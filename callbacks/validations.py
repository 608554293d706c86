"""Validations: validates a run at equal distances of its budget, which makes its score a curve.

`trainer.val_check_interval` sets the distance (docs/runs.md): `auto`, the default, `5%` of the run, `500 steps`,
`300 Mtok` or `10m` of training time. Lightning's own intervals count batches, epochs or the time of day; the length of
a run under a time budget is unknown in all of them.

All validations, the final one included, are of the same text: their scores form one curve, and the best of them is
best.ckpt. They are not on the budget's clock and leave no trace in the training: random states are restored after them.
"""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.messages import note
from bytelm.data.base import token_data
from bytelm.system.random_states import random_states, set_random_states
from bytelm.units import Duration

NEVER = 10**12  # batches between validations, for a run that is validated only at its end
# Tokens, or batches of data that are not TokenData, that `auto` scores during a run, for each one trained on.
MOST_SCORED = 0.5
SCORING_TIME = 1 / 3  # approximate time to score a token, as a share of the time to train on it


class Validations(Callback):
    """Validates after the first step at or beyond each multiple of a distance, through Lightning's own loop.

    Args:
        every: The distance: a share of the run, steps, tokens or training time.
        bounded: Whether a validation is left out if the run would then have scored more than half as many tokens as it
            has trained on; batches, if the data are not TokenData. The final validation is never left out.
    """

    reads_budget = True  # must follow TimeBudget in a trainer's list of callbacks

    def __init__(self, every: Duration = Duration(0.1, "fraction"), bounded: bool = False) -> None:  # noqa: B008
        super().__init__()
        self.every = every
        self.bounded = bounded
        self._next = 0.0  # in the unit of `every`
        self._due = False  # whether a validation follows the last step
        self._scored = 0  # tokens, by all ranks; of other data batches of a rank
        self._random_states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"due": self._due, "scored": self._scored}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._due, self._scored = state_dict["due"], state_dict["scored"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bounded and math.isinf(sum(trainer.num_val_batches)):
            note("validated only at the end of the run: the validation loader has no length (val_check_interval: 10%)")
        # From the state of the run alone: a resumed run can have another limit.
        self._next = self._following(trainer)
        if self._due:
            self._ask(trainer)  # callbacks/resume.py validates

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The budget's progress is the same on all ranks, and changes only with the last batch of a step.
        if self._used(trainer) < self._next or trainer.should_stop:
            return
        self._next = self._following(trainer)
        if not trainer.enable_validation:
            return
        if self.bounded:
            scored, trained = self._amounts(trainer)
            if self._scored + scored > MOST_SCORED * trained:
                return
            self._scored += int(scored)
        self._due = True
        self._random_states = random_states()  # before a loader of the user's is asked for an iterator
        self._ask(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due and self._random_states is None:  # it was due when the run was cut
            self._random_states = random_states()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due or trainer.state.fn != "fit":
            return
        self._due = False
        trainer.val_check_batch = NEVER
        if self._random_states is not None:
            set_random_states(self._random_states)
            self._random_states = None

    def _ask(self, trainer: Trainer) -> None:
        """Makes Lightning validate after this batch."""
        trainer.val_check_batch = 1

    def _used(self, trainer: Trainer) -> float:
        return TimeBudget.of(trainer).progress.amount(self.every.unit)

    def _following(self, trainer: Trainer) -> float:
        # A small share more than a multiple, because 3 * 0.1 is above 0.3.
        return (math.floor(self._used(trainer) / self.every.value * (1 + 1e-9)) + 1) * self.every.value * (1 - 1e-9)

    def _amounts(self, trainer: Trainer) -> tuple[float, int]:
        """Returns the tokens that a validation scores, and those that the run has trained on; or batches, of a rank."""
        n_batches = sum(trainer.num_val_batches)  # infinite if the loader has no length
        if (data := token_data(trainer)) is None:
            return n_batches, trainer.fit_loop.total_batch_idx + 1
        tokens = n_batches * data.batch_size * data.seq_len * trainer.world_size
        return tokens, TimeBudget.of(trainer).tokens
