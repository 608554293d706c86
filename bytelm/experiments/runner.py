"""`python -m bytelm experiments`: runs a list of configs, a grid or a search, one after another, under common limits.

The study's queue (study.py) lists the tasks, the runs' folders have the results. The same command therefore continues
an interrupted study, and several workers, on several machines or GPUs, are the same command, started several times.
"""

import shlex
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from optuna.pruners import BasePruner
from tqdm import tqdm

from bytelm.config import shipped
from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError, Interrupted, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.job import Job, Outcome, RunIsTaken
from bytelm.experiments.pruning import SHARES, Prune, contest_of, options_of, pruner_of, reports
from bytelm.experiments.space_check import check_space
from bytelm.experiments.status_line import columns, status_line
from bytelm.experiments.study import Claim, Study, check_sampler_seed, database_errors
from bytelm.experiments.task import Plan, Point, Sampler, Task, read_space
from bytelm.runs.folder import CONFIG, RUNS, newest_run
from bytelm.runs.ledger import LEDGER, best_of, read_runs, write_ledger
from bytelm.runs.read import Run, read_config
from bytelm.runs.record import FILE as RECORD
from bytelm.runs.record import read as read_record
from bytelm.runs.record import wall_time
from bytelm.runs.score import RANKED, score_of
from bytelm.system.invocation import typed_name
from bytelm.units import Duration, check_time, clock, time_limit

MOST_CUTS = 5  # interruptions of one run within one call of this command
STARTUP_SECONDS = 1200.0  # a run without a config after this time hangs
LOOK_SECONDS = 30.0  # between two checks of the time that other workers have used
QUEUE_SECONDS = 1.0  # between two looks at a queue that another worker fills
VALIDATE = "`-- --trainer.val_check_interval 10%` validates every run at each tenth"
SUCCEEDED = ("completed", "pruned")
FINAL = ("completed", "diverged", "pruned", "timeout")  # statuses of runs that are not resumed
MOST_REJECTIONS = 20  # in a row, after which a search ends


def run_experiments(
    configs: list[str],
    options: list[str],
    study: str | None = None,
    seeds: list[int] | None = None,
    space: dict[str, Any] | str | None = None,
    sampler: Sampler | None = None,
    sampler_seed: int | None = None,
    max_runs: PositiveInt | None = None,
    total_time: Duration | None = None,
    run_timeout: Duration | None = None,
    prune: Prune = "none",
    storage: str | None = None,
) -> int:
    """Runs experiments.

    Args:
        configs: Config files; each is an experiment.
        options: Options that are added to every run's command line.
        study: Name of this collection of runs, and of its folder in runs/. Default: the name of the folder that holds
            the configs, or of the config if there is only one.
        seeds: Every experiment is run once with each seed. Default: the config's seed.
        space: For each searched key a list of values or, except in a grid, a range: `{model.optimizer.lr: {low: 1e-4,
            high: 1e-2, log: true}, lr_schedule: [Constant, Cosine]}`. Or a YAML file with these.
        sampler: grid: every combination; random: random combinations; tpe: combinations chosen by the results of
            earlier runs (Tree-structured Parzen Estimator, Bergstra et al. 2011); gp: by those of earlier completed
            runs, with a Gaussian process, in a few seconds for each draw. random, tpe and gp are searches, which need a
            limit and begin with the config's own values if the space has them. Default: gp if the space has a range,
            otherwise grid.
        sampler_seed: Seed of the draws. Default: a random one; workers with the same seed draw the same.
        max_runs: Maximum number of runs, over all calls and workers.
        total_time: Time limit of all runs together, such as 3h. A run is not started if the longest run so far would
            exceed the limit.
        run_timeout: Time limit of a run, from its start to its end. Default: twice its time budget plus ten minutes;
            no limit for a budget in steps or tokens.
        prune: median: a run ends if its best score so far is worse than the median of the others at the same share of
            the budget. hyperband: of the runs that reach a tenth, three and nine tenths of their budgets, a
            third continues. Runs are compared under equal limits, corpora and schedules only; the time that this saves
            goes to further runs. Runs whose config has `val_check_interval: null` are validated at each tenth of their
            budgets, off the budget's clock.
        storage: The shared queue of the workers: a file, or a database's URL, as in Optuna. Default: a file in the
            study's folder. All workers also need to share runs/, on a file system with locks (flock).

    Returns:
        The exit status: 1 if a run failed or was rejected, or if the study has no completed run; otherwise 0.
    """
    configs = [shipped.resolved(config) for config in configs]
    values = read_space(space)
    if sampler is None:
        sampler = "gp" if isinstance(values, dict) and any(isinstance(v, dict) for v in values.values()) else "grid"
    plan = Plan(configs, options, tuple(seeds) if seeds else (None,), values, sampler)
    if sampler != "grid" and max_runs is None and total_time is None:
        raise ConfigError("max_runs", None, f"a {sampler} search needs a limit; accepted: max_runs or total_time")
    if sampler == "grid" and sampler_seed is not None:
        raise ConfigError(
            "sampler_seed", sampler_seed, "a grid draws nothing; accepted with --sampler random, tpe or gp"
        )
    if sampler_seed is not None:
        check_sampler_seed(sampler_seed)
    check_time("total_time", total_time)
    check_time("run_timeout", run_timeout)
    if study is None:
        study = Path(configs[0]).stem if len(configs) == 1 else Path(configs[0]).absolute().parent.name
    with database_errors(storage):
        queue = Study(study, plan, storage, sampler_seed)
        return Runner(queue, max_runs, total_time, run_timeout, prune).run()


class Runner:
    """Takes runs from a study's queue until it is empty or a limit is reached.

    Args:
        study: The queue.
        max_runs: Limit on the number of the study's runs.
        total_time: Limit on their time.
        run_timeout: Limit on the time of one run.
        prune: The method that ends runs which cannot win.
    """

    def __init__(
        self,
        study: Study,
        max_runs: int | None = None,
        total_time: Duration | None = None,
        run_timeout: Duration | None = None,
        prune: Prune = "none",
    ) -> None:
        self.study = study
        self.max_runs = max_runs
        self.total_time = total_time.value if total_time else None
        self.run_timeout = run_timeout.value if run_timeout else None
        self.pruner = pruner_of(prune)
        self._has_queued = False
        self.outcomes: list[Outcome] = []
        self.bar: tqdm = tqdm(disable=True)
        self._spent = 0.0  # seconds that all runs have taken
        self._standing: _Standing | None = None
        self._noted: set[str] = set()

    def run(self) -> int:
        """Runs them all, and prints a summary; returns the exit status."""
        try:
            self.work()
        except ConfigError:
            self.study.discard()
            raise
        status = self._sum_up()
        self.study.discard()
        return status

    def work(self) -> None:
        """Runs them all."""
        self._fill_queue()
        cuts: Counter[int] = Counter()
        rejections = 0
        # Without a terminal, only a line for each ended run is printed.
        with tqdm(file=sys.stderr, dynamic_ncols=True, bar_format="{desc}", disable=None, leave=False) as self.bar:
            while (
                (rejections < MOST_REJECTIONS or self.study.plan.sampler == "grid")
                and not self._out_of_time()
                and (claim := self._next()) is not None
            ):
                if (outcome := _ended(claim)) is not None:
                    self._close(claim, outcome)
                    continue
                try:
                    # Another worker may have ended the run since this one looked at the queue.
                    is_open = partial(self.study.is_open, claim.number)
                    options = claim.task.fit_options
                    options = options if self.pruner is None else options_of(options)
                    job = Job(options, claim.experiment, is_open=is_open, is_warm=True)
                except RunIsTaken:
                    continue  # another worker resumes the same run, or has ended it
                with job:
                    outcome = self._wait(job, claim)
                    if outcome.exit_status == StorageError.exit_status:
                        self._end_by_storage(claim, outcome)
                    cuts[claim.number] += outcome.status == "interrupted"
                    if outcome.status == "interrupted" and cuts[claim.number] < MOST_CUTS:
                        continue  # it stays in the queue
                    rejections = rejections + 1 if outcome.status == "rejected" else 0
                    self._close(claim, outcome)

    def _close(self, claim: Claim, outcome: Outcome) -> None:
        """Marks a run as ended, and prints a line for it."""
        if outcome.status == "rejected":
            self.study.drop(claim.number)
            self._reject(Path(claim.experiment).name, outcome.reason)
        elif outcome.status == "pruned":
            self.study.prune(claim.number)
            self._tell(claim, outcome)
        else:
            self.study.close(claim.number, self._learnt(outcome))
            self._tell(claim, outcome)

    def _fill_queue(self) -> bool:
        """Queues the checked runs of a list or a grid, or begins a search; returns False while another worker does."""
        if not self._has_queued:
            with self.study.queueing() as may_queue:
                if not may_queue:
                    return False
                if self.study.plan.sampler == "grid":
                    self._queue_runs()
                elif not self.study.has_begun():
                    self._begin_search()
        self._has_queued = True
        return True

    def _next(self) -> Claim | None:
        """Takes the next run; waits if there is none yet because another worker checks and queues them."""
        while True:
            is_filled = self._fill_queue()
            if is_filled or self.study.plan.sampler == "grid":
                claim = self.study.next(self.max_runs)
                if claim is not None or is_filled:
                    return claim
            time.sleep(QUEUE_SECONDS)

    def _queue_runs(self) -> None:
        """Queues the valid runs of a list or a grid; all are checked before this worker's first one starts."""
        if not (missing := self.study.missing()):
            return
        space = self.study.plan.space
        accepted: list[Task] = []
        rejected = []
        with Checker(is_warm=True) as checker:
            with tqdm(missing, desc="checking configs", leave=False, file=sys.stderr, disable=None) as tasks:
                for task in tasks:
                    config, reason = checker.check(task.fit_options)
                    if config is None:
                        rejected.append((task.name, reason))
                    elif space:
                        accepted.append(task)
                    else:
                        self.study.queue(task)  # other workers can take it at once
            if rejected and space:
                known = {value for task in {*accepted, *self.study.folders()} for value in task.point}
                check_space(space, partial(self._refused, checker), known)
        for task in accepted:
            self.study.queue(task)
        for name, reason in rejected:
            self._reject(name, reason)

    def _begin_search(self) -> None:
        """Checks the space, and begins with the configs' own values where it contains them."""
        plan = self.study.plan
        with Checker(is_warm=True) as checker:
            if not check_space(plan.space or {}, partial(self._refused, checker)):
                raise ConfigError("config", plan.configs[0], self._refused(checker, ()))
            own = []
            for config in plan.configs:
                resolved, _ = checker.check(plan.task(config, None, ()).fit_options)
                if resolved is not None and (drawn := plan.own(config, resolved)) is not None:
                    own.append(drawn)
        self.study.begin(own)

    def _refused(self, checker: Checker, point: Point) -> str:
        """Returns why no config can run with a point of the space; an empty text if one can."""
        plan = self.study.plan
        reasons = []
        for config in plan.configs:
            reasons.append(checker.check(plan.task(config, None, point).fit_options)[1])
            if not reasons[-1]:
                return ""
        return reasons[0]

    def _reject(self, name: str, reason: str | None) -> None:
        self.outcomes.append(Outcome("rejected", reason))
        tqdm.write(f"rejected        {name}: {reason}", file=sys.stderr)

    def _end_by_storage(self, claim: Claim, outcome: Outcome) -> None:
        """Ends the command, because later runs would fail, too: the disk is full or cannot be written to."""
        with suppress(StorageError):
            write_ledger(Path(RUNS), self._note)
        raise StorageError(f"{outcome.reason}; once this is solved, the same command continues {claim.experiment}")

    # Limits

    def _runs(self) -> list[Run]:
        runs = read_runs(self.study.folder, self._note)
        return [run for run in runs if run.folder.parent.parent == self.study.folder]

    def _note(self, text: str) -> None:
        """Prints a note once."""
        if text not in self._noted:
            self._noted.add(text)
            note(text)

    def _out_of_time(self) -> bool:
        runs = self._runs()
        times = [wall_time(run.record) for run in runs]
        longest = max(times, default=0.0)
        self._spent = sum(times)
        to_come = sum(longest - wall_time(run.record) for run in runs if run.status == "running")  # of other workers
        return self.total_time is not None and self._spent + to_come + longest > self.total_time

    def _spent_by_others(self, experiment: Path) -> float:
        """Time of all runs except one, in seconds."""
        return sum(wall_time(run.record) for run in self._runs() if run.folder.parent != experiment)

    # One run

    def _wait(self, job: Job, claim: Claim) -> Outcome:
        others, look_again = self._spent_by_others(job.folder), LOOK_SECONDS
        before = max(self._spent - others, 0.0)  # time of earlier attempts at this run
        self._standing = None
        reported = 0
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
                if self.pruner is not None:
                    reported = self._report(job, claim, self.pruner, reported)
                self._show(claim, before, job.elapsed)
                time.sleep(0.5)
            if self.pruner is not None and outcome.status == "completed" and not reported:
                self._note(f"a run without a score at a tenth of its budget, like this one, is not pruned; {VALIDATE}")
            return outcome
        except Interrupted as error:
            job.end()
            job.wait()
            raise Interrupted(error.signum, f"in {claim.experiment}; the same command continues it") from error

    def _report(self, job: Job, claim: Claim, pruner: BasePruner, reported: int) -> int:
        """Reports new validations of a run to the study, and ends the run if it cannot win.

        Returns:
            The last share of the budget that was reported.
        """
        if (run := newest_run(job.folder)) is None or not (run / CONFIG).exists():
            return reported
        for share, score in reports(run):
            if share > reported:
                reported = share
                contest = contest_of(run, read_config(run / CONFIG))
                if self.study.report(claim.number, share, score, contest, pruner):
                    at = f"{share / SHARES:.0%} of its budget"
                    job.end("pruned", f"at {at} its score was {score:.4f}; {type(pruner).__name__} ended it")
                    break
        return reported

    def _learnt(self, outcome: Outcome) -> float | None:
        """The result that a search learns from: the score, if it is of the same kind as the study's other scores.

        Values of val_loss from before the first run with a val_bpb remain in the search.
        """
        records = [outcome.record, *(run.record for run in self._runs())]
        return score_of(records).of(outcome.record)

    # Output

    def _show(self, claim: Claim, before: float, elapsed: float) -> None:
        """Updates the line on the terminal.

        Args:
            claim: The running run.
            before: Time of its earlier processes, in seconds.
            elapsed: Time of the current process, in seconds.
        """
        if self.bar.disable:
            return
        if self._standing is None:  # read once a run
            self._standing = self._read_standing()
        standing = self._standing
        left = [] if self.total_time is None else [self.total_time - self._spent - elapsed]
        if standing.left is not None and standing.mean is not None:
            left.append(standing.left * standing.mean - before - elapsed)
        total = None if standing.left is None else standing.ended + standing.left
        text = status_line(
            standing.ended,
            total,
            standing.best,
            Path(claim.experiment).name,
            before + elapsed,
            min(left, default=None),
            columns() - 1,  # in the last column, the cursor would go to the next line
        )
        self.bar.set_description_str(text)

    def _read_standing(self) -> "_Standing":
        states = self.study.states()
        times = {name: 0.0 for name, has_ended in states.items() if has_ended}
        runs = self._runs()
        for run in runs:
            if run.experiment in times:
                times[run.experiment] += wall_time(run.record)
        left = sum(not has_ended for has_ended in states.values()) if self.study.plan.sampler == "grid" else None
        if self.max_runs is not None:
            left = min(self.max_runs - len(times), self.max_runs if left is None else left)
        best = best_of(run for run in runs if run.experiment in times)
        shown = None if best is None else (f"{best.score:.4f}", best.experiment)
        return _Standing(len(times), left, statistics.fmean(times.values()) if times else None, shown)

    def _tell(self, claim: Claim, outcome: Outcome) -> None:
        """Prints a line for a run that has ended."""
        self.outcomes.append(outcome)
        write_ledger(Path(RUNS), self._note)
        text = " ".join((outcome.reason or "").split())
        if outcome.status == "completed":
            for run in self._runs():
                if run.folder == outcome.folder:
                    score, value = run.ranked_by.name, run.ranked_by.of(outcome.record)
                    text = f"no {score}, {run.decision}" if value is None else f"{score} {value:.4f}, {run.decision}"
        name = Path(claim.experiment).name
        tqdm.write(f"{outcome.status:9} {clock(wall_time(outcome.record))}  {name}: {text}", file=sys.stderr)

    def _sum_up(self) -> int:
        now = Counter(outcome.status for outcome in self.outcomes)
        ended = sum(self.study.states().values())
        write_ledger(Path(RUNS), self._note)
        print(f"runs: {ended} ended, of which now {', '.join(f'{n} {status}' for status, n in now.items()) or 'none'}")
        if left := self.study.queued:
            print(f"left: {left}, running elsewhere or beyond the limits; the same command continues with them")
        plan = self.study.plan
        has_runs = plan.sampler != "grid" or not set(plan.grid()).isdisjoint(self.study.folders())
        if has_runs and (best := best_of(self._runs())):  # otherwise they are those of an earlier command
            print(f"best: {best.score:.4f} {best.folder}")
        print(f"ledger: {Path(RUNS, LEDGER)}")
        if ended:
            print(f"report: {typed_name()} report {shlex.quote(str(self.study.folder))}")
        if any(outcome.status not in SUCCEEDED for outcome in self.outcomes):
            return 1
        if any(run.status in SUCCEEDED for run in self._runs()) or self.study.is_busy():
            return 0
        note("no run of the study is completed")
        return 1


def _ended(claim: Claim) -> Outcome | None:
    """How a run ended whose worker was killed, or lost the queue, before it could mark the run as ended.

    Args:
        claim: The run.

    Returns:
        None for a run that has yet to begin or to continue.
    """
    run = newest_run(Path(RUNS, claim.experiment)) if claim.was_cut else None
    if run is None or not (run / RECORD).exists():
        return None
    with suppress(StorageError):  # a damaged record is that of a run to be resumed
        record = read_record(run)
        if record["status"] in FINAL:
            return Outcome(record["status"], record.get("reason"), run, record)
    return None


class _Standing(NamedTuple):
    """Progress of the study at the start of a run.

    Attributes:
        ended: Number of runs that have ended.
        left: Number of runs that have not, the current one included; None if it is not known.
        mean: Mean time of a run, in seconds.
        best: Score and name of the best run.
    """

    ended: int
    left: int | None
    mean: float | None
    best: tuple[str, str] | None


def default_timeout(experiment: Path) -> float | None:
    """Twice a run's budget in time plus ten minutes; a run that takes longer hangs.

    Args:
        experiment: The run's folder.

    Returns:
        Seconds; infinity for a budget without a limit in time, None before the run has written its config.
    """
    run = newest_run(experiment)
    if run is None or not (run / CONFIG).exists():
        return None
    try:
        limit = (read_config(run / CONFIG).get("time_budget") or {}).get("limit")
    except StorageError:  # it is damaged
        return float("inf")
    seconds = None if limit is None else time_limit(limit)
    return float("inf") if seconds is None else 2 * seconds + 600


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `python -m bytelm experiments`.
    """
    parser = CommandParser(
        "experiments",
        passes_on=True,
        description=f"Runs many experiments under common limits. Options after `--` apply to each run. {RANKED}",
    )
    parser.add_argument("configs", nargs="+", help="Config files; each is an experiment.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Each experiment is run once with each seed.")
    parser.add_function_arguments(run_experiments, skip={"configs", "options", "seeds"})
    sys.exit(run_experiments(**vars(parser.parse_args(args))))
