"""A check of the schedulers that a module's `configure_optimizers` returns.

Where only the budget ends a run, Lightning's `trainer.estimated_stepping_batches` is infinite, and its `max_steps`
is -1. Schedulers accept both as their length: the learning rate is then constant, 0 or NaN.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from lightning.pytorch import Trainer

from bytelm.errors import ConfigError

LENGTHS = ("T_0", "T_max", "step_size", "total_iters", "total_steps")  # torch's names
ACCEPTED = (
    "only the budget ends the run (trainer.estimated_stepping_batches is infinite, trainer.max_steps -1); accepted: a "
    "number of steps, or a schedule of bytelm's, such as Cosine(), which ends with the budget"
)


def check_lengths(trainer: Trainer) -> None:
    """Rejects schedulers whose length is that of a run without an end.

    Args:
        trainer: A trainer whose optimizers are set up.

    Raises:
        ConfigError: There is one.
    """
    for config in trainer.lr_scheduler_configs:
        name = type(config.scheduler).__name__
        for key, value in _lengths(config.scheduler):
            if isinstance(value, int | float) and (math.isinf(value) or (key in LENGTHS and value < 0)):
                raise ConfigError(f"configure_optimizers.{name}.{key}", value, ACCEPTED)


def _lengths(scheduler: Any) -> Iterator[tuple[str, Any]]:
    """Yields the lengths of a scheduler, and the values that functions of LambdaLR have been made with."""
    yield from ((key, value) for key, value in vars(scheduler).items() if key in LENGTHS)
    for function in getattr(scheduler, "lr_lambdas", None) or ():
        if isinstance(function, partial):  # as Hugging Face's get_cosine_schedule_with_warmup makes them
            yield from (("lr_lambda", value) for value in (*function.args, *function.keywords.values()))
        for cell in getattr(function, "__closure__", None) or ():
            yield "lr_lambda", cell.cell_contents
    for part in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        yield from _lengths(part)
