"""Score: what runs are ranked by, the lowest first.

It is val_bpb. Runs on tokens of which it is not known how many bytes they stand for (TokenShards' `tokenizer: null`)
have none, and are ranked by val_loss. Nats per token cannot be compared with bits per byte, so among runs that have
val_bpb those without it have no rank.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A figure that runs are ranked by.

    Attributes:
        name: Its key in record.json.
        unit: What it is counted in.
        tag: Its name in TensorBoard.
        head: What a table calls it: its name, with the unit where that does not say it.
    """

    name: str
    unit: str
    tag: str
    head: str

    def of(self, record: Mapping[str, Any]) -> float | None:
        """That of a run.

        Args:
            record: What its record.json says.

        Returns:
            None where the run was not completed, or has no such figure.
        """
        value = record.get(self.name) if record.get("status") == "completed" else None
        return value if value is not None and math.isfinite(value) else None


RANKED = (  # for the commands' help
    "Runs are ranked by val_bpb, or, where none of those that compete has it, by val_loss, in nats per token."
)
VAL_BPB = Score("val_bpb", "bits per byte", "val/bpb", "val_bpb")
VAL_LOSS = Score("val_loss", "nats per token", "val/loss", "val_loss (nats per token)")


def score_for(counts_bytes: bool) -> Score:
    """What a run is ranked by and its best checkpoint chosen by, while it is under way.

    Args:
        counts_bytes: Whether it is known how many bytes its data's tokens stand for.
    """
    return VAL_BPB if counts_bytes else VAL_LOSS


def score_of(records: Iterable[Mapping[str, Any]]) -> Score:
    """What runs are ranked by that compete with each other: val_bpb, or val_loss if none of them has that.

    Args:
        records: What their record.json say.
    """
    some = list(records)
    known = (score for score in (VAL_BPB, VAL_LOSS) if any(score.of(record) is not None for record in some))
    return next(known, VAL_BPB)
