"""Values of `trainer.precision`."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run
from lightning_cells.checks import dtypes, never

GROUP = "Precisions"


def precision(value: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a precision; further options follow it."""
    return Cell(GROUP, value, ("--trainer.precision", value), documented, check, more, **details)


def _with_warning(run: Run) -> tuple[Any, Any]:
    warned = "Using `precision='bf16-mixed'` instead" in run.err
    return (run.seen["dtypes"]["product"], warned), ("bfloat16", True)


on_cpu = Check("products in bfloat16, and Lightning's warning", _with_warning)

CELLS = (
    precision("32-true", "float32", dtypes("float32", "float32")),
    precision("32", "float32", dtypes("float32", "float32")),
    precision("64-true", "float64", dtypes("float64", "float64")),
    precision("64", "float64", dtypes("float64", "float64")),
    precision("bf16-mixed", "float32 weights, products in bfloat16", dtypes("float32", "bfloat16"), in_ci=True),
    precision("bf16", "float32 weights, products in bfloat16", dtypes("float32", "bfloat16")),
    precision("bf16-true", "bfloat16", dtypes("bfloat16", "bfloat16")),
    precision("16-true", "float16", dtypes("float16", "float16"), "--model.optimizer.eps", "1e-4"),
    precision("16-mixed", "float32 weights, products in float16; on a CPU in bfloat16, with a warning", on_cpu),
    precision("16", "float32 weights, products in float16; on a CPU in bfloat16, with a warning", on_cpu),
    precision("transformer-engine", "FP8 of NVIDIA's library", never, everywhere=False),
    precision("transformer-engine-float16", "FP8 of NVIDIA's library", never, everywhere=False),
    precision("fp8", "no name of Lightning's", never, in_ci=True),
)  # fmt: skip
