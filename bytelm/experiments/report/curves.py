"""How a run's loss and score developed, by the clock and by tokens, from TensorBoard's log and the record."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bytelm.config.flat import flat
from bytelm.config.messages import note
from bytelm.runs.read import Run
from bytelm.runs.score import VAL_BPB, Score
from bytelm.units import time_limit

SMOOTHED_OVER = 40  # parts that a curve is averaged in


@dataclass(frozen=True)
class Curve:
    """Values of one kind over a run, as arrays of equal length.

    Attributes:
        seconds: Training time, as the budget's clock counts it.
        tokens: Tokens seen.
        values: The values, in the unit of the score.
    """

    seconds: np.ndarray
    tokens: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Curves:
    """A run's curves.

    Attributes:
        run: The run.
        loss: Its training loss, smoothed; empty where it is in another unit than the score.
        scores: Its scores, of which the last is that of the record.
    """

    run: Run
    loss: Curve
    scores: Curve


def read_curves(run: Run, score: Score) -> Curves:
    """A run's curves.

    A run whose logger was another than TensorBoard's has but its final score.

    Args:
        run: A run that has ended.
        score: What it is ranked by. Beside val_bpb, the training loss of tokens that are no bytes is left out, as it
            is in another unit.
    """
    log = _read_log(run)

    def logged(tag: str) -> tuple[np.ndarray, np.ndarray]:
        found = [one for one in log.get(tag, ()) if math.isfinite(one.value)]
        return np.array([one.step for one in found], float), np.array([one.value for one in found], float)

    clock = _Clock(run, *logged("time_budget/progress"))
    steps, loss = logged("train/loss")
    if score == VAL_BPB and flat(run.config).get("model.gpt.vocab_size") != 256:
        steps, loss = steps[:0], loss[:0]
    if len(loss):
        width = max(1, len(loss) // SMOOTHED_OVER)
        nats = math.log(2) if score == VAL_BPB else 1.0  # in the score's unit
        steps, loss = steps[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid") / nats
    score_steps, scores = logged(score.tag)
    final, total = score.of(run.record), run.record.get("total_steps")
    if final is not None and total is not None:
        earlier = score_steps < total
        score_steps, scores = np.append(score_steps[earlier], total), np.append(scores[earlier], final)
    return Curves(
        run,
        Curve(clock.seconds(steps), clock.tokens(steps), loss),
        Curve(clock.seconds(score_steps), clock.tokens(score_steps), scores),
    )


def _read_log(run: Run) -> dict[str, list[Any]]:
    """TensorBoard's scalars by their tags; none where the log cannot be read."""
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except Exception:  # TensorBoard's, of many kinds
        note(f"{run.folder}: the log cannot be read; its curve is left out")
        return {}
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


class _Clock:
    """Tells at what time a step ended.

    The log has the share of the budget that was used at some of the steps, the record what was used in the end.

    Args:
        run: The run.
        steps: Steps at which progress was logged.
        progress: Share of the budget, 0 to 1, at these.
    """

    def __init__(self, run: Run, steps: np.ndarray, progress: np.ndarray) -> None:
        self._total_steps = float(run.record.get("total_steps") or (steps[-1] if len(steps) else 0.0))
        self._tokens = float(run.record.get("tokens_seen") or 0.0)
        limit = time_limit(run.limits) if len(run.limits) == 1 else None
        end = float(run.record.get("training_time_secs") or limit or 0.0)
        if limit is None:  # steps take equal time, as far as the log tells
            steps, seconds = np.zeros(0), np.zeros(0)
        else:
            seconds = progress * limit
        before = steps < self._total_steps
        self._steps = np.concatenate([[0.0], steps[before], [self._total_steps]])
        self._seconds = np.concatenate([[0.0], np.minimum(seconds[before], end), [end]])

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """Seconds of training when these steps ended."""
        return np.interp(steps, self._steps, self._seconds)

    def tokens(self, steps: np.ndarray) -> np.ndarray:
        """Tokens seen when these steps ended."""
        return steps * (self._tokens / self._total_steps if self._total_steps else 0.0)
