"""`python -m bytelm experiments`: runs a list of configs, a grid or a search, one after another, under common limits.

What is to be done is in the study's queue (study.py), what was done in the runs' folders; so the same command goes on
after a cut, and several workers, on as many machines or GPUs, are the same command given as many times.
"""

import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError, Interrupted, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.job import Job, Outcome
from bytelm.experiments.study import Claim, Plan, Sampler, Study
from bytelm.runs.folder import RUNS, newest_run
from bytelm.runs.ledger import LEDGER, Run, best_of, read_runs, write_ledger
from bytelm.runs.record import wall_time
from bytelm.runs.score import RANKED, score_of
from bytelm.units import Duration, clock, time_limit

MOST_CUTS = 5  # of one run, within one call of this command
STARTUP_SECONDS = 1200.0  # a run that has not written its config by then hangs
LOOK_SECONDS = 30.0  # between two looks at what other workers have spent
MOST_REFUSALS = 20  # in a row: then a search that draws is ended


def run_experiments(
    configs: list[str],
    options: list[str],
    study: str | None = None,
    seeds: list[int] | None = None,
    space: dict[str, Any] | None = None,
    sampler: Sampler = "grid",
    sampler_seed: int | None = None,
    max_runs: PositiveInt | None = None,
    total_time: Duration | None = None,
    run_timeout: Duration | None = None,
    storage: str | None = None,
) -> int:
    """Runs experiments.

    Args:
        configs: Config files; each is an experiment.
        options: What is added to every run's command line.
        study: Name of this collection of runs, and of its folder in runs/. Default: name of the folder that the configs
            are in; of the config, if there is one only.
        seeds: Every experiment is run once with each of them. Default: the config's own.
        space: For each key that is searched a list of values, or, but in a grid, a range: `{model.optimizer.lr: {low:
            1e-4, high: 1e-2, log: true}, lr_schedule: [Constant, Cosine]}`.
        sampler: grid: every combination; random: combinations drawn at random; tpe: drawn by what was learnt from
            those before (Tree-structured Parzen Estimator, Bergstra et al. 2011). The latter two need a limit.
        sampler_seed: Of the draws. Default: drawn, as several workers that share one would draw the same.
        max_runs: How many runs there may be, over all calls and workers.
        total_time: How long all runs together may take, such as 3h. No run is begun that would not fit, going by the
            longest so far.
        run_timeout: How long a run may take, from its start to its end, before it is ended. Default: twice its budget
            in time, and ten minutes; no limit for a budget in steps or tokens.
        storage: Where workers keep the queue that they share: a file, or a database's URL, as in Optuna. Default: a
            file in the study's folder. They have to share runs/ in any case, on a file system with locks (flock).

    Returns:
        The exit status: 0 if every run was completed.
    """
    plan = Plan(configs, options, tuple(seeds) if seeds else (None,), space, sampler)
    if sampler != "grid" and max_runs is None and total_time is None:
        raise ConfigError("max_runs", None, f"a {sampler} search needs a limit; accepted: max_runs or total_time")
    for key, duration in (("total_time", total_time), ("run_timeout", run_timeout)):
        if duration is not None and (duration.unit != "seconds" or not duration.value):
            raise ConfigError(key, str(duration), "accepted: a time (180s, 3m, 1h30m)")
    if study is None:
        study = Path(configs[0]).stem if len(configs) == 1 else Path(configs[0]).absolute().parent.name
    elif Path(study).is_absolute() or ".." in Path(study).parts:
        raise ConfigError("study", study, f"accepted: the name of a folder in {RUNS}/")
    queue = Study(study, plan, storage, sampler_seed)
    return Runner(queue, max_runs, total_time, run_timeout).run()


class Runner:
    """Takes runs from a study's queue until it is empty or a limit is reached.

    Args:
        study: The queue.
        max_runs: Limit on the number of the study's runs.
        total_time: Limit on their time.
        run_timeout: Limit on one run's.
    """

    def __init__(
        self,
        study: Study,
        max_runs: int | None = None,
        total_time: Duration | None = None,
        run_timeout: Duration | None = None,
    ) -> None:
        self.study = study
        self.max_runs = max_runs
        self.total_time = total_time.value if total_time else None
        self.run_timeout = run_timeout.value if run_timeout else None
        self.outcomes: list[Outcome] = []
        self.bar: tqdm = tqdm(disable=True)
        self._spent = 0.0  # seconds that all runs have taken
        self._shown: tuple[str, float | None] | None = None

    def run(self) -> int:
        """Runs them all; returns the exit status."""
        self._queue_runs()
        cuts: Counter[int] = Counter()
        refusals = 0
        # Where there is no terminal, a line for every run that has ended is enough.
        with tqdm(file=sys.stderr, dynamic_ncols=True, bar_format="{desc}", disable=None) as self.bar:
            while (
                (refusals < MOST_REFUSALS or self.study.plan.sampler == "grid")
                and not self._out_of_time()
                and (claim := self.study.next(self.max_runs)) is not None
            ):
                try:
                    job = Job(claim.task.fit_options, claim.experiment)
                except StorageError:
                    continue  # another worker has gone on with the same cut run
                with job:
                    outcome = self._wait(job, claim)
                    cuts[claim.number] += outcome.status == "interrupted"
                    if outcome.status == "interrupted" and cuts[claim.number] < MOST_CUTS:
                        continue  # it stays in the queue
                    refusals = refusals + 1 if outcome.status == "refused" else 0
                    if outcome.status == "refused":
                        self.study.drop(claim.number)
                        self._refuse(Path(claim.experiment).name, outcome.reason)
                    else:
                        self.study.close(claim.number, self._learnt(outcome))
                        self._tell(claim, outcome)
        return self._sum_up()

    def _queue_runs(self) -> None:
        """Queues the runs of a list or a grid, but for those that cannot run: all are checked before one is begun."""
        if self.study.plan.sampler != "grid" or not (missing := self.study.missing()):
            return
        with (
            Checker() as checker,
            tqdm(missing, desc="checking configs", leave=False, file=sys.stderr, disable=None) as tasks,
        ):
            for task in tasks:
                config, reason = checker.check(task.fit_options)
                if config is None:
                    self._refuse(task.name, reason)
                else:
                    self.study.queue(task)

    def _refuse(self, name: str, reason: str | None) -> None:
        self.outcomes.append(Outcome("refused", reason))
        tqdm.write(f"refused         {name}: {reason}", file=sys.stderr)

    # Limits

    def _runs(self) -> list[Run]:
        return [run for run in read_runs(self.study.folder) if run.folder.parent.parent == self.study.folder]

    def _out_of_time(self) -> bool:
        runs = self._runs()
        times = [wall_time(run.record) for run in runs]
        longest = max(times, default=0.0)
        self._spent = sum(times)
        to_come = sum(longest - wall_time(run.record) for run in runs if run.status == "running")  # other workers'
        return self.total_time is not None and self._spent + to_come + longest > self.total_time

    def _spent_by_others(self, experiment: Path) -> float:
        """Seconds that all runs but one have taken so far."""
        return sum(wall_time(run.record) for run in self._runs() if run.folder.parent != experiment)

    # One run

    def _wait(self, job: Job, claim: Claim) -> Outcome:
        others, look_again = self._spent_by_others(job.folder), LOOK_SECONDS
        before = max(self._spent - others, 0.0)  # what earlier attempts at this run have taken
        try:
            while (outcome := job.poll()) is None:
                if job.timeout is None:
                    job.timeout = self.run_timeout or default_timeout(job.folder)
                    if job.timeout is None and job.elapsed > STARTUP_SECONDS:
                        job.timeout = STARTUP_SECONDS
                if self.total_time is not None and job.elapsed > look_again:
                    others, look_again = self._spent_by_others(job.folder), job.elapsed + LOOK_SECONDS
                if self.total_time is not None and before + others + job.elapsed > self.total_time:
                    job.end()
                self._show(f"{Path(claim.experiment).name} {clock(job.elapsed)}", job.elapsed)
                time.sleep(0.5)
            return outcome
        except Interrupted as error:
            job.end()
            job.wait()
            raise Interrupted(error.signum, f"in {claim.experiment}; the same command goes on with it") from error

    def _learnt(self, outcome: Outcome) -> float | None:
        """What a search is to learn from: the run's score, if it is the one that the study has so far.

        What it was told of runs that have val_loss alone, before the first that has val_bpb, is not taken back.
        """
        records = [outcome.record, *(run.record for run in self._runs())]
        return score_of(records).of(outcome.record)

    # What is shown

    def _show(self, now: str, elapsed: float) -> None:
        if self.bar.disable:
            return
        if self._shown is None:  # read once a run
            runs = self._runs()
            ended = [run for run in runs if run.status != "running"]
            mean = statistics.fmean([wall_time(run.record) for run in ended]) if ended else None
            left = self.study.queued if self.study.plan.sampler == "grid" else None
            if self.max_runs is not None:
                left = min(self.max_runs - len(ended), left if left is not None else self.max_runs)
            total = "?" if left is None else str(len(ended) + left)
            seconds = [] if left is None or mean is None else [left * mean]
            seconds += [] if self.total_time is None else [self.total_time - self._spent]
            best = best_of(ended)
            self._shown = (
                f"{len(ended)}/{total} runs | " + (f"best {best.score:.4f} {best.experiment} | " if best else ""),
                min(seconds, default=None),
            )
        text, seconds_left = self._shown
        left_text = "" if seconds_left is None else f" | {clock(max(seconds_left - elapsed, 0.0))} left"
        self.bar.set_description_str(f"{text}{now}{left_text}")

    def _tell(self, claim: Claim, outcome: Outcome) -> None:
        """One line for a run that has ended."""
        self.outcomes.append(outcome)
        self._shown = None
        write_ledger(Path(RUNS))
        said = " ".join((outcome.reason or "").split())
        if outcome.status == "completed":
            run = next(run for run in self._runs() if run.folder == outcome.folder)
            score, value = run.ranked_by.name, run.ranked_by.of(outcome.record)
            said = f"no {score}, {run.decision}" if value is None else f"{score} {value:.4f}, {run.decision}"
        name = Path(claim.experiment).name
        tqdm.write(f"{outcome.status:9} {clock(wall_time(outcome.record))}  {name}: {said}", file=sys.stderr)

    def _sum_up(self) -> int:
        counts = Counter(outcome.status for outcome in self.outcomes)
        write_ledger(Path(RUNS))
        runs = self._runs()
        print(f"runs: {len(runs)}, of which now {', '.join(f'{n} {status}' for status, n in counts.items()) or 'none'}")
        if left := self.study.queued:
            print(f"left: {left}; under way elsewhere, or beyond the limits; the same command goes on with them")
        if best := best_of(runs):
            print(f"best: {best.score:.4f} {best.folder}")
        print(f"ledger: {Path(RUNS, LEDGER)}")
        return int(any(outcome.status != "completed" for outcome in self.outcomes))


def default_timeout(experiment: Path) -> float | None:
    """Twice a run's budget in time and ten minutes: what no run takes that does not hang.

    Args:
        experiment: Its folder.

    Returns:
        Seconds; infinitely many for a budget that is none in time, None before the run has written its config.
    """
    run = newest_run(experiment)
    if run is None or not (run / "config.yaml").exists():
        return None
    seconds = time_limit(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["time_budget"]["limit"])
    return float("inf") if seconds is None else 2 * seconds + 600


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: What follows `python -m bytelm experiments`.
    """
    parser = CommandParser(
        "experiments",
        description="Runs many experiments under common limits. What follows `--` is added to each run's command line. "
        f"{RANKED}",
    )
    parser.add_argument("configs", nargs="+", help="Config files; each is an experiment.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Each experiment is run with each of them.")
    parser.add_function_arguments(run_experiments, skip={"configs", "options", "seeds"})
    at = args.index("--") if "--" in args else len(args)
    given = vars(parser.parse_args(args[:at]))
    status = run_experiments(**given, options=args[at + 1 :])
    sys.exit(status)
