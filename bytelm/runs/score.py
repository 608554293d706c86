"""Score: the value that runs are ranked by, the lowest first.

The score is val_bpb. Runs on tokens with an unknown number of bytes (TokenShards' `tokenizer: null`) have no val_bpb
and are ranked by val_loss. Nats per token and bits per byte are not comparable: if some of the competing runs have a
val_bpb, the others have no rank.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A value that runs can be ranked by.

    Attributes:
        name: Its key in record.json.
        unit: Its unit.
        tag: Its name in TensorBoard.
        head: Its name in tables, with the unit if the name does not include it.
    """

    name: str
    unit: str
    tag: str
    head: str

    def of(self, record: Mapping[str, Any]) -> float | None:
        """The value of a run.

        Args:
            record: The contents of its record.json.

        Returns:
            The value; None if the run was not completed or has no such value.
        """
        value = record.get(self.name) if record.get("status") == "completed" else None
        return value if value is not None and math.isfinite(value) else None


RANKED = (  # for the commands' help
    "Runs are ranked by val_bpb or, if none of the competing runs has it, by val_loss, in nats per token."
)
VAL_BPB = Score("val_bpb", "bits per byte", "val/bpb", "val_bpb")
VAL_LOSS = Score("val_loss", "nats per token", "val/loss", "val_loss (nats per token)")


def score_for(counts_bytes: bool) -> Score:
    """The score of a running run, by which its best checkpoint is chosen.

    Args:
        counts_bytes: Whether the number of bytes of its data's tokens is known.
    """
    return VAL_BPB if counts_bytes else VAL_LOSS


def score_of(records: Iterable[Mapping[str, Any]]) -> Score:
    """The score of competing runs: val_bpb, or val_loss if none of them has a val_bpb.

    Args:
        records: The contents of their record.json.
    """
    some = list(records)
    known = (score for score in (VAL_BPB, VAL_LOSS) if any(score.of(record) is not None for record in some))
    return next(known, VAL_BPB)
