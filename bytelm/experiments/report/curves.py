"""A run's loss and score over training time and tokens, from TensorBoard's log and the record."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bytelm.config.flat import flat
from bytelm.config.messages import note
from bytelm.runs import validations
from bytelm.runs.read import Run
from bytelm.runs.score import VAL_BPB, Score
from bytelm.units import time_limit

# It tells of each resumed run that its steps are out of order, as they are meant to be.
logging.getLogger("tensorboard").setLevel(logging.ERROR)

SMOOTHED_OVER = 40  # number of intervals in which a curve is averaged


@dataclass(frozen=True)
class Curve:
    """Values of one kind over a run, as arrays of equal length.

    Attributes:
        seconds: Training time, by the budget's clock.
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
        loss: Its training loss, smoothed; empty if its unit differs from the score's.
        scores: Its scores; the last one is from the record.
    """

    run: Run
    loss: Curve
    scores: Curve


def read_curves(run: Run, score: Score) -> Curves:
    """Reads a run's curves.

    The scores are from the run's validations.jsonl, which has the time of each. A run of an earlier version has none:
    its scores are from TensorBoard's log, and with another logger only the final one is known.

    Args:
        run: A run that has ended.
        score: The score that ranks it. With val_bpb, the training loss of tokens that are not bytes is left out,
            because its unit differs.
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
    curve = Curve(clock.seconds(score_steps), clock.tokens(score_steps), scores)
    return Curves(run, Curve(clock.seconds(steps), clock.tokens(steps), loss), _validated(run, score) or curve)


def _validated(run: Run, score: Score) -> Curve | None:
    """Returns the scores in validations.jsonl, with their own times; None if there are none."""
    found = [
        (float(each.seconds), float(each.tokens), float(value))
        for each in validations.read(run.folder)
        if (value := getattr(each, score.name)) is not None and math.isfinite(value)
    ]
    return Curve(*np.array(found).T) if found else None


def _read_log(run: Run) -> dict[str, list[Any]]:
    """Returns TensorBoard's scalars by tag; empty if the log cannot be read."""
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except Exception:  # TensorBoard raises errors of many kinds
        note(f"{run.folder}: the log cannot be read; its curve is left out")
        return {}
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


class _Clock:
    """Computes the time at which a step ended.

    The log has the used share of the budget at some of the steps; the record has the final use.

    Args:
        run: The run.
        steps: Steps at which progress was logged.
        progress: Share of the budget, 0 to 1, at these steps.
    """

    def __init__(self, run: Run, steps: np.ndarray, progress: np.ndarray) -> None:
        self._total_steps = float(run.record.get("total_steps") or (steps[-1] if len(steps) else 0.0))
        self._tokens = float(run.record.get("tokens_seen") or 0.0)
        limit = time_limit(run.limits) if len(run.limits) == 1 else None
        end = float(run.record.get("training_time_secs") or limit or 0.0)
        if limit is None:  # steps are assumed to take equal time
            steps, seconds = np.zeros(0), np.zeros(0)
        else:
            seconds = progress * limit
        before = steps < self._total_steps
        self._steps = np.concatenate([[0.0], steps[before], [self._total_steps]])
        self._seconds = np.concatenate([[0.0], np.minimum(seconds[before], end), [end]])

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """Returns the seconds of training at the end of these steps."""
        return np.interp(steps, self._steps, self._seconds)

    def tokens(self, steps: np.ndarray) -> np.ndarray:
        """Returns the tokens seen at the end of these steps."""
        return steps * (self._tokens / self._total_steps if self._total_steps else 0.0)
