"""Validations of submitted configs are part of the time of a run: how many a config asks for, and how long they take.

The number follows from the interval and the limit where both have the same unit, otherwise from the baseline's speed. A
validation takes the time that those of the baseline took.
"""

import math
from collections.abc import Mapping
from typing import Any

from bytelm.callbacks.validations import MOST_SCORED, SCORING_TIME
from bytelm.errors import ConfigError
from bytelm.runs import validations
from bytelm.runs.read import Run
from bytelm.trainer_options.epochs import AUTO
from bytelm.units import Duration, limits_of

INTERVAL = "trainer.val_check_interval"


def training_seconds(resolved: Mapping[str, Any], most: float, baseline: Run | None) -> float:
    """Returns the seconds that a config can train for in a run of at most `most` seconds, validations included.

    Args:
        resolved: The resolved config.
        most: Seconds of a run.
        baseline: The baseline's run; None if it has not ended.

    Raises:
        ConfigError: The validations take longer than the rest of a run.
    """
    every, limit = resolved["trainer"].get("val_check_interval"), resolved["time_budget"]["limit"]
    if every is None or resolved["time_budget"].get("scope") == "run":
        return most
    if every == AUTO:
        return most / (1 + MOST_SCORED * SCORING_TIME)
    seconds = _seconds_of_one(baseline)
    n = _number(every, resolved, min(limits_of(limit).get("seconds", most), most), baseline)
    if not seconds or not n:
        return most
    left = most - n * seconds
    if left < limits_of(limit).get("seconds", 0.0):
        what = f"its {n:,} validations of about {seconds:.2g}s do not fit, with time_budget.limit, into {most:g}s"
        raise ConfigError(INTERVAL, every, f"{what}, the time of a run here; accepted: a longer interval, or {AUTO}")
    return left


def _seconds_of_one(baseline: Run | None) -> float:
    """Seconds of a validation of the baseline, with its share of the time for checkpoints; 0 if it is not known."""
    if baseline is None:
        return 0.0
    total, training, startup = (baseline.record.get(f"{name}_time_secs") for name in ("total", "training", "startup"))
    n = len(validations.read(baseline.folder))
    if total is None or training is None or startup is None or not n:
        return 0.0
    return max(total - training - startup, 0.0) / n


def _number(every: Any, resolved: Mapping[str, Any], seconds: float, baseline: Run | None) -> int:
    """The number of validations before the last one; 0 if it is not known.

    Args:
        every: The interval.
        resolved: The resolved config.
        seconds: Seconds of training.
        baseline: The baseline's run.
    """
    limits = limits_of(resolved["time_budget"]["limit"]) | {"fraction": 1.0, "seconds": seconds}
    options, trainer = resolved["data"].get("init_args") or {}, resolved["trainer"]
    speed = (baseline.record.get("tokens_per_sec") if baseline is not None else None) or 0.0
    limits.setdefault("tokens", speed * seconds)
    batch = options.get("batch_size", 0) * options.get("seq_len", 0)
    batches = limits["tokens"] / batch if batch else 0.0
    limits.setdefault("steps", batches / (trainer.get("accumulate_grad_batches") or 1))
    if isinstance(every, int):
        return max(math.ceil(batches / every) - 1, 0)
    if not isinstance(every, str) or ":" in every:  # a share of an epoch, or a time of day
        return 0
    duration = Duration.parse(every)
    return max(math.ceil(limits.get(duration.unit, 0.0) / duration.value - 1e-9) - 1, 0)
