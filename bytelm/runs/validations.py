"""validations.jsonl: the scores of a run's validations, with the share of the budget at which they were made.

A run appends a line after each validation (callbacks/validation_log.py), whatever its logger is. Other processes read
the file while the run trains.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bytelm.runs.score import VAL_BPB, VAL_LOSS

FILE = "validations.jsonl"


class Validation(NamedTuple):
    """A validation.

    Attributes:
        progress: Share of the budget that was used, 0 to 1.
        steps: Steps so far.
        tokens: Tokens so far, on all ranks together.
        seconds: Training time so far, by the budget's clock.
        val_bpb: Bits per byte of text; None if the bytes of the tokens are not known.
        val_loss: Nats per token.
    """

    progress: float
    steps: int
    tokens: int
    seconds: float
    val_bpb: float | None
    val_loss: float | None

    @property
    def score(self) -> float | None:
        """val_bpb, or val_loss if there is none; None if it is not finite."""
        value = self.val_loss if self.val_bpb is None else self.val_bpb
        return value if value is not None and math.isfinite(value) else None


def of(progress: float, steps: int, tokens: int, seconds: float, metrics: Mapping[str, float | None]) -> Validation:
    """A validation with scores by their tags, such as val/bpb."""
    return Validation(
        round(progress, 6), steps, tokens, round(seconds, 3), metrics.get(VAL_BPB.tag), metrics.get(VAL_LOSS.tag)
    )


def append(folder: Path, validation: Validation) -> None:
    """Appends a validation to the file of a run.

    Args:
        folder: The run's folder.
        validation: The validation.

    Raises:
        OSError: It cannot be written.
    """
    with open(folder / FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(validation._asdict()) + "\n")


def read(folder: Path) -> list[Validation]:
    """The validations of a run in the order of their steps; empty if there are none.

    A run that resumes from a checkpoint, or is taken back to one, repeats steps: a validation replaces earlier ones of
    the same and of later steps. Lines that cannot be read, such as one that is being written, are left out.

    Args:
        folder: The run's folder.
    """
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Validation] = []
    for line in lines:
        try:
            validation = Validation(**json.loads(line))
            found = [earlier for earlier in found if earlier.steps < validation.steps] + [validation]
        except (ValueError, TypeError):
            continue
    return found
