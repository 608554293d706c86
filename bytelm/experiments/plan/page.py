"""The words of a plan: the recommendation, the table of candidates, and plan.md."""

import math

from bytelm.experiments.plan.budget_law import BudgetLaw
from bytelm.experiments.plan.candidates import shown
from bytelm.experiments.plan.result import Result
from bytelm.experiments.report.text import code, plain, table

FEW_STEPS = 100  # of a run; shorter ones are mostly warm-up

PICTURE = (
    "Points are runs. Against an option, lines are predictions for the recommended candidate with only that option "
    "changed; the other options of the runs differ."
)
LAW_IN_PICTURE = " Against the parameters, lines are the law below."

LIMITS = """\
- Only the options of the space vary. Everything else is that of the config.
- A score that was reached is that of one seed; its interval is the noise of seeds. It says nothing of candidates that
  had no whole run.
- The other scores are predictions of a quadratic surface that is fitted to all runs. They serve to choose the next
  run. Their interval contains what the runs leave open and the noise of one run, not an error of the surface's form.
- The best whole run is near the best of the space, not at it: a handful of runs do not settle differences of 1 to 3 %.
- A text that whole runs read several times is read less often in short ones. Repeated tokens teach less (Muennighoff et
  al. 2023, arXiv:2305.16264), and a network that memorises its text becomes worse: trust whole runs only.
- The speed is that of this machine under its load during the runs."""


def recommendation(result: Result) -> str:
    """The recommended candidate and its score, in one paragraph."""
    best, run = result.best, result.best.longest
    assert run is not None
    low, high = best.interval
    name = result.score.name
    text = f"Recommended for {result.budget}: {shown(best.candidate)}. "
    if best.is_reached:
        text += (
            f"Its {name} is {best.score:.4f}, reached in {run.steps} steps by the run {run.folder} (one seed; 95 % of "
            f"other seeds reach {low:.4f} to {high:.4f})."
        )
    else:
        text += (
            f"Its predicted {name} is {best.score:.4f} ({low:.4f} to {high:.4f}). This is an extrapolation from "
            f"{run.share:.0%} of the budget, and unreliable: --within leaves no time for a whole run; the "
            "same command with more time makes one."
        )
    if run.steps < FEW_STEPS:
        text += f" With fewer than {FEW_STEPS} steps a run is mostly warm-up: plan for a longer budget."
    return text


def rows(result: Result) -> list[list[str]]:
    """The table of candidates, with its head."""
    found = [["candidate", result.score.name, "95 % interval", "", "parameters", "tokens", "longest run"]]
    for one in result.shown:
        low, high = one.interval
        run, how = one.longest, "reached" if one.is_reached else "predicted"
        counts = ["", "", "none"]
        if run is not None:
            counts = [f"{run.params:,.0f}", f"{run.tokens:,.0f}", result.limit(run.share)]
        found.append([shown(one.candidate), f"{one.score:.4f}", f"{low:.4f} to {high:.4f}", how, *counts])
    return found


def page(result: Result, command: str, picture: str) -> str:
    """plan.md.

    Args:
        result: The result.
        command: Command that trains the recommended candidate.
        picture: File with the picture.
    """
    head, *others = rows(result)
    parts = [
        f"# Plan for {result.budget}",
        plain(recommendation(result)),
        f"To train it{' again' if result.best.is_reached else ''}: {code(command)}",
        "## Candidates",
        table([head[0], *(f"{name}>" for name in head[1:])], [[plain(cell) for cell in row] for row in others]),
        "Candidates without a run are the best predictions that are not nearly the same as another candidate.",
        f"![Loss against each option, for several budgets]({picture})",
        PICTURE + (LAW_IN_PICTURE if result.law is not None else ""),
        "## Loss by parameters and tokens",
    ]
    if result.law is None:
        parts.append(f"No law of the loss in parameters and tokens: {result.no_law}.")
    else:
        parts += _of_law(result, result.law)
    return "\n\n".join([*parts, "## Limits of the prediction", LIMITS]) + "\n"


def _of_law(result: Result, law: BudgetLaw) -> list[str]:
    figures = law.figures(result.limit)
    values = [[name, f"{fit:.3g}", f"{low:.3g} to {high:.3g}"] for name, (fit, low, high) in figures["values"].items()]
    budgets = figures["budgets"]
    sizes = [_size(float(size)) for size in budgets[0]["curve"]]
    losses = []
    for one in budgets:
        size, low, high = map(_size, one["best_parameters"])
        name = one["limit"] if one["is_run"] else f"{one['limit']} (not run)"
        lowest = "{:.3f} ({:.3f} to {:.3f})".format(*one["score"])
        losses.append([name, f"{size} ({low} to {high})", lowest, *(f"{loss:.3f}" for loss in one["curve"].values())])
    best, low, high = next(one["best_parameters"] for one in budgets if one["limit"] == str(result.budget))
    smallest, *_, largest = map(float, budgets[0]["curve"])
    which = f"For {result.budget}, the best size by the law is {_size(best)} parameters ({_size(low)} to {_size(high)})"
    if not smallest * 1.01 < best < largest / 1.01:
        end = "largest" if best > smallest * 1.01 else "smallest"
        which += f", the {end} size that was run; the best one may lie beyond"
    left_open = ""
    if names := figures["open"]:
        left_open = f" The runs leave {', '.join(names)} open: these intervals reach the bounds of the fit."
    read = "" if law.readings is None else f" The longest run read its text {law.readings:.2g} times."
    return [
        "L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3) with N parameters and D tokens, fitted to "
        "all completed runs. The recommendation does not use it. Intervals (95 %) are those of fits to resampled "
        f"runs.{left_open}",
        table(["", "fit>", "95 % interval>"], values),
        f"{which}. The table has the loss at the best size and at five others, for several budgets.{_speed(law)}",
        table(["budget", "best size>", f"{result.score.name} there>", *(f"{size}>" for size in sizes)], losses),
        "Limits of the law:",
        "- Rates and shapes, which differ between the runs, are not part of it. The runs are "
        f"{100 * figures['apart']:.1f} % from the law (root mean square); the best runs of a size are below it.\n"
        f"- Repeated text and overfitting.{read} Repeated tokens count less, as Muennighoff et al. 2023 measured on "
        "larger networks. A network that memorises its text becomes worse, which the law cannot say.\n"
        "- Budgets beyond those that were run. In tests, extrapolations by such laws were 13 % too low to 40 % too "
        "high.",
    ]


def _speed(law: BudgetLaw) -> str:
    factor = math.exp(law.speed_apart)
    if factor < 1.01:  # the budget is one of tokens
        return ""
    return (
        " The tokens that fit into a budget are predicted from the parameters alone. The runs differ from this by a "
        f"factor of {factor:.2f} (root mean square), because of their shapes and of the machine's load."
    )


def _size(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.0f}"
