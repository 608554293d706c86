"""`python -m bytelm plan`: which config fits a budget on this machine, from a few short and whole runs.

A few candidates (candidates.py), spread over the space, are first trained within a small share of the budget, with
their whole schedules. A surface of the loss over the options and the budget (surface.py) is fitted to these runs. The
candidate with the best prediction is then trained within the whole budget, the surface is fitted again, and so on as
far as the time allows (choice.py, stages.py). The recommended candidate is the best of these whole runs (result.py).
All runs are those of a study, so the same command continues after it was cut. A law of the loss in parameters and
tokens (loss_law.py, budget_law.py) is reported beside it (page.py, picture.py).
"""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bytelm.config import shipped
from bytelm.config.command import CommandParser
from bytelm.config.flat import flat
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.plan.candidates import candidates_of, point_of, searched_keys, space_around
from bytelm.experiments.plan.choice import WITHIN
from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.output import HTML, RECOMMENDED, write
from bytelm.experiments.plan.page import recommendation, rows
from bytelm.experiments.plan.result import Result
from bytelm.experiments.plan.runs import LIMIT, PlanRuns
from bytelm.experiments.plan.stages import make_runs
from bytelm.experiments.space_check import check_space
from bytelm.experiments.study import Study, check_sampler_seed, database_errors
from bytelm.experiments.task import IN_SPACE, Plan, Point, check_options, read_space
from bytelm.experiments.text_table import aligned
from bytelm.units import Duration, check_time

WITHOUT_SAMPLES = ["--samples.max_new_tokens", "0"]  # before the user's options; a sample takes up to a second


def plan(
    config: str,
    options: list[str],
    limit: Duration | None = None,
    within: Duration | None = None,
    space: dict[str, Any] | list[Any] | str | None = None,
    sampler_seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
) -> str:
    """Plans a run.

    Args:
        config: Config file that the candidates differ from.
        options: Options that are added to every run's command line.
        limit: The budget to plan for: a time, steps, tokens or FLOPs. Default: that of the config.
        within: Time limit of all runs of the plan together. Default: five times the budget if it is a time; otherwise
            none.
        space: The candidates: for each key a list of values or a range, as in `experiments`: `{model.gpt.d_model: [64,
            96, 128], model.optimizer.lr: {low: 1e-3, high: 1e-2, log: true}}`; or a YAML file with these; or a list of
            candidates: `[{model.gpt.d_model: 64, model.gpt.d_ff: 192}, {model.gpt.d_model: 96, model.gpt.d_ff: 384}]`.
            With d_model and without d_ff, d_ff stays in the config's proportion to it. Default: half to twice the
            config's width and layers, and a quarter to four times its rate.
        sampler_seed: Seed of the choice of the first runs. The same command continues with the same one.
        study: Name of the study with the runs. Default: `plan-` and the name of the config.
        storage: The queue of several workers, as in `experiments`.

    Returns:
        The result, as text.

    Raises:
        ConfigError: A value cannot be used, or a config cannot run.
        StorageError: Too few runs were made, or a file cannot be written.
    """
    config = shipped.resolved(config)
    if not Path(config).is_file():
        raise ConfigError("config", config, f"there is no such file and {shipped.missing(config)}")
    check_time("within", within)
    check_sampler_seed(sampler_seed)
    searched = read_space(space)
    keys = searched_keys(searched)
    if LIMIT in keys:
        raise ConfigError(f"space.{LIMIT}", keys[LIMIT], "a plan is for one limit; accepted: --time_budget.limit 180s")
    given_twice = {} if limit is None else {LIMIT: "it is also given before --"}
    check_options(options, {**dict.fromkeys(keys, IN_SPACE), **given_twice})
    resolved = _resolved(config, options, searched)
    budget = limit or _only_limit(resolved)
    if budget.unit == "fraction" or not budget.value:
        raise ConfigError(LIMIT, str(budget), "accepted: a time, steps, tokens or FLOPs")
    if within is None and budget.unit == "seconds":
        within = Duration(WITHIN * budget.value, "seconds")
    known = flat(resolved)
    if searched is None:
        searched = space_around(known)
    candidates = candidates_of(searched, known, sampler_seed)
    coordinates = Coordinates(candidates, searched_keys(searched))
    with database_errors(storage):
        queue = Study(study or f"plan-{Path(config).stem}", Plan([config], [*WITHOUT_SAMPLES, *options]), storage)
        runs = PlanRuns(queue, config, candidates, budget, storage)
        rejected = make_runs(runs, coordinates, within, sampler_seed)
        standing = runs.standing()
    try:
        result = Result(coordinates, budget, standing, rejected)
    except ValueError as error:
        raise StorageError(f"{queue.folder}: {error}; accepted: a longer --within, or more candidates") from error
    recommended = queue.folder / RECOMMENDED
    command = shlex.join(["python", "-m", "bytelm", "fit", "--config", str(recommended), *options])
    write(result, queue.folder, config, command)
    _resolved(str(recommended), options)
    files = f"plan: {queue.folder / HTML}\nrecommended: {recommended}\nrun it: {command}"
    return "\n\n".join([aligned(rows(result)), recommendation(result), files])


def _resolved(config: str, options: Sequence[str], space: Any = None) -> dict[str, Any]:
    """All values of a config; checks a space, too.

    Args:
        config: The config file.
        options: Further options.
        space: Lists of values, each of which must be usable; or a list of candidates, of which one must.

    Raises:
        ConfigError: The config or the space cannot be used.
    """
    with Checker(is_warm=True) as checker:

        def refused(point: Point) -> str:
            return checker.check(Plan([config], options).task(config, None, point).fit_options)[1]

        resolved, reason = checker.check(["--config", config, *options])
        if resolved is None:
            raise ConfigError("config", config, reason)
        if isinstance(space, Mapping):
            check_space(space, refused)
        elif space:
            reasons = list(itertools.takewhile(bool, (refused(point_of(candidate)) for candidate in space)))
            if len(reasons) == len(space):
                raise ConfigError("space", space[0], reasons[0])
    return resolved


def _only_limit(resolved: Mapping[str, Any]) -> Duration:
    limit = resolved["time_budget"]["limit"]
    if isinstance(limit, list):
        if len(limit) > 1:
            raise ConfigError(LIMIT, limit, "a plan is for one limit; accepted: --time_budget.limit 180s")
        (limit,) = limit
    return Duration.parse(limit)


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `python -m bytelm plan`.
    """
    parser = CommandParser(
        "plan",
        passes_on=True,
        description="Finds a network that fits a budget on this machine, by a few short and whole runs. Options after "
        "`--` apply to each run.",
    )
    parser.add_argument("--config", required=True, help="Config file that the candidates differ from.")
    parser.add_argument(f"--{LIMIT}", type=Duration | None, help="The budget to plan for. Default: that of the config.")
    parser.add_function_arguments(plan, skip={"config", "options", "limit"})
    given = parser.parse_args(args)
    limit = given.pop("time_budget").limit
    print(plan(**vars(given), limit=limit))
