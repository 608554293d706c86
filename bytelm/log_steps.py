"""When to log: at every `trainer.log_every_n_steps`-th step, and then only."""

from lightning.pytorch import Trainer


def is_log_step(trainer: Trainer) -> bool:
    """Whether what is logged after the present step gets written.

    Asked before every `log()`, since Lightning's costs tens of microseconds a call whether or not it is written.
    """
    return trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
