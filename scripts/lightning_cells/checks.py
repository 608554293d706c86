"""Checks that several cells share."""

from typing import Any

from lightning_cells.cell import NOTE, Check, Run

TWO = ("--trainer.devices", "2", "--time_budget.limit", "3 steps")

never = Check("", lambda run: ("a run", "a rejection"))
"""For uses that have to be rejected."""

same_as_plain = Check("the weights of a run without it", lambda run: (run.seen["weights"], run.plain().seen["weights"]))


def trained(steps: int, **seen: Any) -> Check:
    """The number of steps, and values that the Observer has recorded."""
    text = ", ".join([f"{steps} steps", *(f"{key} {value}" for key, value in seen.items())])
    return Check(text, lambda run: ({key: run.seen[key] for key in ("steps", *seen)}, {"steps": steps, **seen}))


def ranks_agree() -> Check:
    """Two ranks have trained on different batches, and have the same weights, those of their common gradient."""

    def look(run: Run) -> tuple[Any, Any]:
        ranks = run.ranks
        batches = {batch for rank in ranks for batch in rank["batches"]}
        observed = {
            "ranks": len(ranks),
            "weights": len({rank["weights"] for rank in ranks}),
            "batches of one rank in the other's": sum(len(rank["batches"]) for rank in ranks) - len(batches) > 0,
            "trained": all(rank["steps"] == 3 for rank in ranks),
            "status": run.record["status"],
        }
        wanted = {"ranks": 2, "weights": 1, "batches of one rank in the other's": False, "trained": True}
        return observed, {**wanted, "status": "completed"}

    return Check("2 ranks, different batches, the same weights after 3 steps", look)


def clipped(norm: float = 0.0, value: float = 0.0) -> Check:
    """The largest gradient is clipped to a norm, or to a value, where its norm is larger."""

    def look(run: Run) -> tuple[Any, Any]:
        norms, values = zip(*run.seen["gradients"], strict=True)
        largest = round(max(values if value else norms), 5)
        return (largest, max(norms) > value), (value or norm, True)

    return Check(f"the largest {'value' if value else 'norm'} of gradients is {value or norm}", look)


def dtypes(weights: str, product: str) -> Check:
    """Types of the weights and of what a matrix product returns."""
    wanted = {"weights": weights, "product": product, "steps": 6}
    return Check(
        f"weights in {weights}, products in {product}",
        lambda run: ({"steps": run.seen["steps"]} | {k: run.seen["dtypes"][k] for k in ("weights", "product")}, wanted),
    )


def says(*words: str, steps: int = 6) -> Check:
    """Words that are printed in a run that trains to its end."""

    def look(run: Run) -> tuple[Any, Any]:
        said = run.out + run.err
        return ([word for word in words if word in said], run.seen["steps"]), ([*words], steps)

    return Check(f"prints {', '.join(f'`{word}`' for word in words)}", look)


def notes(*lines: str, steps: int = 6) -> Check:
    """Notes on options that have no effect, each on standard error, of a run that trains to its end."""

    def look(run: Run) -> tuple[Any, Any]:
        said = [line.removeprefix(NOTE) for line in run.err.splitlines()]
        return ([line for line in lines if line in said], run.seen["steps"]), ([*lines], steps)

    return Check("; ".join(f"the note `{line}`" for line in lines), look)
