"""`python -m bytelm experiments`: the runs, their order, their limits, and the messages.

Most runs here are stand-ins, which take no time but report a duration. Two tests run the whole program, and end it with
a kill and with a Ctrl-C.
"""

import csv
import json
import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import programs
import pytest
import yaml
from disks import small_disk
from run_folders import make_run
from tqdm import tqdm

from bytelm.program import main
from bytelm.runs import validations
from bytelm.runs.validations import Validation
from bytelm.system.files import replacing
from bytelm.system.locks import lock
from bytelm.system.process import utc

pytest.importorskip("optuna")

from bytelm.experiments import runner
from bytelm.experiments.check import Checker, _check
from bytelm.experiments.job import Outcome, RunIsTaken
from bytelm.experiments.runner import MOST_CUTS, default_timeout, run_experiments
from bytelm.experiments.status_line import status_line
from bytelm.runs.record import wall_time

PROJECT = Path(__file__).resolve().parents[2]
ENOUGH = 100  # runs that no test needs
POLL = 5.0  # seconds that pass for a stand-in at each poll
RANGE = "{model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}"
LIST = "{model.gpt.d_ff: [32, 48]}"
GOES_ON = "running elsewhere or beyond the limits; the same command continues with them"


@dataclass
class Ending:
    """The end of a run that is not ended earlier.

    Attributes:
        status: Status of the job's outcome.
        val_bpb: Its score.
        val_loss: Its score in nats per token.
        seconds: Duration of the run, over all processes.
        reason: The reason why it is not completed.
        exit_status: Exit status of its process.
        curve: Its validations: a score by the share of its budget.
    """

    status: str = "completed"
    val_bpb: float | None = 2.0
    val_loss: float | None = None
    seconds: float = 10.0
    reason: str | None = None
    exit_status: int | None = None
    curve: dict = field(default_factory=dict)


@dataclass
class World:
    """The behaviour of the stand-ins, and a record of their use.

    Attributes:
        endings: The ends of runs, by name.
        otherwise: The end of all other runs.
        rejections: The reasons why configs cannot run, by a part of the command line.
        resolved: All values of a config that can run.
        limit: The budget in the runs' configs.
        begun: Runs in the order in which they were started or resumed.
        options: The arguments after `fit`, for each run.
        timeouts: Their limits at their ends.
        events: Checks and runs in order.
        others: Actions of another process at the moment when a run is started, by name.
    """

    endings: dict = field(default_factory=dict)
    otherwise: Ending = field(default_factory=Ending)
    rejections: dict = field(default_factory=dict)
    resolved: dict = field(default_factory=dict)
    limit: object = "4 steps"
    begun: list = field(default_factory=list)
    options: list = field(default_factory=list)
    timeouts: list = field(default_factory=list)
    events: list = field(default_factory=list)
    others: dict = field(default_factory=dict)


class StandIn:
    """Replaces a Job: the same folder and outcomes, but no process."""

    def __init__(self, world, options, experiment, is_open, is_warm):
        self.folder = Path("runs", experiment)
        if other := world.others.get(self.folder.name):
            other(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = open(self.folder / "log.txt", "ab")  # noqa: SIM115 (closed by close)
        if not lock(self._log.fileno()):
            self._log.close()
            raise RunIsTaken(f"{self.folder}: another process works on this run")
        if not is_open():
            self._log.close()
            raise RunIsTaken(f"{self.folder}: another process has ended this run")
        world.begun.append(experiment)
        world.options.append(options)
        world.events.append(f"run {self.folder.name}")
        assert len(world.begun) < ENOUGH, "this does not end"
        self.timeout = None
        self.elapsed = 0.0
        self._world = world
        self._ending = world.endings.get(self.folder.name, world.otherwise)
        self._ended_by = None
        self._run = self.folder / "version_0"
        self._run.mkdir(exist_ok=True)
        self._lock = open(self._run / ".lock", "ab")  # noqa: SIM115 (closed when the run ends)
        assert lock(self._lock.fileno())
        (self._run / "config.yaml").write_text(yaml.safe_dump({"time_budget": {"limit": world.limit}}))
        record = self._run / "record.json"
        self._validated = set()
        self._reason = None
        self._earlier = wall_time(json.loads(record.read_text())) if record.exists() else 0.0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self._log.close()
        self._lock.close()

    def end(self, status="interrupted", reason=None):
        self._ended_by = self._ended_by or status
        self._reason = reason

    def poll(self):
        left = self._ending.seconds - self._earlier
        if self.timeout is not None and self.elapsed > self.timeout:
            self.end("timeout")
        if self._ended_by is None:
            self.elapsed = min(self.elapsed + POLL, left)
            for progress, score in self._ending.curve.items():
                step = round(progress * 100)
                if progress * left <= self.elapsed and step not in self._validated:
                    self._validated.add(step)
                    validations.append(self._run, Validation(progress, step, step, self.elapsed, score, None))
            if self.elapsed < left:
                return None
        return self._outcome()

    def wait(self):
        while (outcome := self.poll()) is None:
            pass
        return outcome

    def _outcome(self):
        status = self._ended_by or self._ending.status
        exit_status = self._ending.exit_status if self._ended_by is None else None
        self._lock.close()
        if status == "rejected":
            shutil.rmtree(self.folder)
            return Outcome(status, self._ending.reason)
        self._world.timeouts.append(self.timeout)
        number = len(self._world.timeouts)
        record = {
            "status": status,
            "reason": None if status == "completed" else self._ending.reason or self._reason or f"it was {status}",
            "val_bpb": self._ending.val_bpb if status == "completed" else None,
            "val_loss": self._ending.val_loss if status == "completed" else None,
            "total_time_secs": self.elapsed,
            "wall_time_secs": self._earlier + self.elapsed,
            "started_at": utc(1_000_000_000 + number),
            "ended_at": utc(1_000_000_001 + number),
        }
        with replacing(self._run / "record.json") as partial:
            partial.write_text(json.dumps(record))
        return Outcome(status, record["reason"], self._run, record, exit_status)


class StandInChecker(Checker):
    """Replaces a Checker, without a process."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def check(self, options):
        config = options[options.index("--config") + 1]
        self.world.events.append(f"check {config}")
        reasons = [why for part, why in self.world.rejections.items() if part in " ".join(options)]
        return (None, reasons[0]) if reasons else (self.world.resolved, "")


@pytest.fixture
def world(folder, monkeypatch):
    """Stand-ins replace runs and checks. tiny.yaml and other.yaml exist."""
    world = World()
    Path("other.yaml").write_text("seed_everything: 3\n")
    monkeypatch.setattr(runner, "Job", partial(StandIn, world))
    monkeypatch.setattr(runner, "Checker", lambda is_warm: StandInChecker(world))
    monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=lambda seconds: None))
    return world


class Ended(NamedTuple):
    status: int
    out: list[str]
    err: list[str]


@pytest.fixture
def experiments(folder, capsys):
    """Runs the command in this process; returns its exit status and its output."""

    def experiments(*args):
        with pytest.raises(SystemExit) as ended:
            main(["experiments", *args])
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out.splitlines(), captured.err.splitlines())

    return experiments


def on_record(experiment):
    return json.loads(Path("runs", experiment, "version_0", "record.json").read_text())


def ledger():
    """Returns the status of each experiment."""
    with open("runs/ledger.csv", newline="", encoding="utf-8") as file:
        return {row["experiment"]: row["status"] for row in csv.DictReader(file)}


# Runs


def test_all_are_run_in_order_and_the_best_is_named(world, experiments):
    world.endings = {"tiny,seed=2": Ending(val_bpb=2.5), "other,seed=2": Ending(val_bpb=1.9, seconds=3700.0)}
    ended = experiments("tiny.yaml", "other.yaml", "--seeds", "2", "1", "--study", "s")
    assert ended.status == 0
    assert world.begun == ["s/tiny,seed=2", "s/other,seed=2", "s/tiny,seed=1", "s/other,seed=1"]
    assert ended.out == [
        "runs: 4 ended, of which now 4 completed",
        "best: 1.9000 runs/s/other,seed=2/version_0",
        "ledger: runs/ledger.csv",
        "report: bytelm report runs/s",
    ]
    assert ended.err == [
        "completed 0:10  tiny,seed=2: val_bpb 2.5000, keep",
        "completed 1:01:40  other,seed=2: val_bpb 1.9000, keep",
        "completed 0:10  tiny,seed=1: val_bpb 2.0000, discard",
        "completed 0:10  other,seed=1: val_bpb 2.0000, discard",
    ]
    assert ledger() == dict.fromkeys(("tiny,seed=2", "other,seed=2", "tiny,seed=1", "other,seed=1"), "completed")


def test_the_same_command_runs_nothing_twice(world, experiments):
    experiments("tiny.yaml", "--seeds", "1", "2")
    again = experiments("tiny.yaml", "--seeds", "1", "2")
    assert len(world.begun) == 2
    assert again == (
        0,
        [
            "runs: 2 ended, of which now none",
            "best: 2.0000 runs/tiny/tiny,seed=1/version_0",
            "ledger: runs/ledger.csv",
            "report: bytelm report runs/tiny",
        ],
        [],
    )
    experiments("tiny.yaml", "--seeds", "1", "2", "3")
    assert world.begun[2:] == ["tiny/tiny,seed=3"]


def test_options_after_two_dashes_and_seeds_reach_the_run(world, experiments):
    experiments("tiny.yaml", "--seeds", "42", "1", "--", "--trainer.devices", "1", "--lr_schedule=Cosine")
    options = ["--config", "tiny.yaml", "--trainer.devices", "1", "--lr_schedule=Cosine", "--seed_everything"]
    assert world.options == [[*options, "42"], [*options, "1"]]


def test_a_grid_reaches_the_run(world, experiments):
    space = "{model.gpt.d_ff: [32, 48], lr_schedule: [{class_path: Cosine, init_args: {warmup: 5%}}]}"
    experiments("tiny.yaml", "--space", space)
    schedule = ["--lr_schedule", "{class_path: Cosine, init_args: {warmup: 5%}}"]
    assert world.options == [
        ["--config", "tiny.yaml", "--model.gpt.d_ff", "32", *schedule],
        ["--config", "tiny.yaml", "--model.gpt.d_ff", "48", *schedule],
    ]


@pytest.mark.parametrize(
    ("args", "study"),
    [
        (["sweep/a.yaml", "sweep/b.yaml"], "sweep"),
        (["sweep/a.yaml"], "a"),
        (["sweep/a.yaml", "--study", "of/mine"], "of/mine"),
    ],
    ids=str,
)
def test_a_study_is_named_by_its_configs_or_by_the_user(world, experiments, args, study):
    Path("sweep").mkdir()
    for name in ("a", "b"):
        shutil.copy("tiny.yaml", f"sweep/{name}.yaml")
    assert experiments(*args).status == 0
    assert world.begun[0] == f"{study}/a"
    assert Path("runs", study, "a", "version_0", "record.json").exists()


def test_a_plain_run_of_the_same_config_is_not_of_the_study(world, experiments):
    folder = Path("runs/tiny/version_0")  # as written by `fit --config tiny.yaml`
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"status": "completed", "val_bpb": 0.5, "total_time_secs": 1e6}')
    ended = experiments("tiny.yaml", "--total_time", "100s")
    assert ended.out[:2] == ["runs: 1 ended, of which now 1 completed", "best: 2.0000 runs/tiny/tiny/version_0"]


def test_the_queue_is_where_the_user_wants_it(world, experiments):
    assert experiments("tiny.yaml", "--storage", "queue.journal").status == 0
    assert experiments("tiny.yaml", "--storage", "queue.journal").status == 0
    assert world.begun == ["tiny/tiny"]
    assert Path("queue.journal").exists()


def test_one_worker_checks_the_configs_and_the_others_take_what_it_queues(world, monkeypatch):
    """A worker finds the queue being filled, and waits."""
    study = Path("runs/s")
    study.mkdir(parents=True)
    turn = open(study / ".queueing.lock", "ab")  # noqa: SIM115 (closed by the worker's first wait)
    assert lock(turn.fileno())
    waits = []

    def wait(seconds):
        waits.append(seconds)
        assert world.events == []
        turn.close()

    monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=lambda s: wait(s) if not waits else None))
    assert run_experiments(["tiny.yaml", "other.yaml"], [], study="s") == 0
    assert waits == [runner.QUEUE_SECONDS]
    assert world.events == ["check tiny.yaml", "check other.yaml", "run tiny", "run other"]


@pytest.mark.parametrize("status", ["completed", "interrupted"])
def test_a_run_that_ended_when_its_worker_was_killed_is_not_run_again(world, experiments, status):
    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.Runner, "_close", killed)
        patch.setattr(runner, "MOST_CUTS", 1)
        world.endings["tiny"] = Ending(status)
        with pytest.raises(Killed):
            run_experiments(["tiny.yaml", "other.yaml"], [], study="s")
    assert (world.begun, on_record("s/tiny")["status"]) == (["s/tiny"], status)
    world.endings["tiny"] = Ending(seconds=20.0)
    ended = experiments("tiny.yaml", "other.yaml", "--study", "s")
    assert ended.out[0] == "runs: 2 ended, of which now 2 completed"
    again = [] if status == "completed" else ["s/tiny"]
    assert world.begun == ["s/tiny", *again, "s/other"]


def test_workers_share_the_runs(world, monkeypatch):
    monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(0.05)))
    with ThreadPoolExecutor(3) as pool:
        statuses = pool.map(lambda _: run_experiments(["tiny.yaml"], [], seeds=list(range(8))), range(3))
        assert list(statuses) == [0, 0, 0]
    assert sorted(world.begun) == [f"tiny/tiny,seed={seed}" for seed in range(8)]
    assert ledger() == {f"tiny,seed={seed}": "completed" for seed in range(8)}


def test_a_run_that_another_worker_takes_and_ends_first_is_not_run_again(world, experiments):
    def work(folder):
        world.others.clear()
        assert run_experiments(["tiny.yaml"], [], seeds=[1, 2]) == 0

    world.others["tiny,seed=1"] = work
    assert experiments("tiny.yaml", "--seeds", "1", "2").status == 0
    assert world.begun == ["tiny/tiny,seed=1", "tiny/tiny,seed=2"]
    assert ledger() == {"tiny,seed=1": "completed", "tiny,seed=2": "completed"}


def test_a_search_draws_as_many_as_it_may(world, experiments):
    search = ("tiny.yaml", "--sampler", "random", "--sampler_seed", "0", "--space", RANGE, "--max_runs")
    assert experiments(*search, "3").status == 0
    assert experiments(*search, "5").status == 0
    rates = [float(options[options.index("--model.optimizer.lr") + 1]) for options in world.options]
    assert len(set(rates)) == 5
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_search_begins_with_the_configs_own_values_if_its_space_has_them(world, experiments, sampler):
    world.resolved = {"model": {"gpt": {"d_ff": 48}, "optimizer": {"class_path": "torch.optim.Adam", "init_args": {}}}}
    space = ("--space", "{model.gpt.d_ff: [32, 48, 64], model.optimizer: [AdamW, Adam]}", "--sampler", sampler)
    assert experiments("tiny.yaml", *space, "--max_runs", "4").status == 0
    assert world.options[0][-4:] == ["--model.gpt.d_ff", "48", "--model.optimizer", "Adam"]
    assert len(set(map(str, world.options))) == 4
    checks = [event for event in world.events if event.startswith("check")]
    assert experiments("tiny.yaml", *space, "--max_runs", "5").status == 0
    assert [event for event in world.events if event.startswith("check")] == checks  # a space is checked once


@pytest.mark.parametrize("values", [{}, {"model": {"gpt": {"d_ff": 40}}}], ids=["unknown", "outside"])
def test_a_search_begins_with_a_draw_if_its_space_does_not_have_them(world, experiments, values):
    world.resolved = values
    assert experiments("tiny.yaml", "--space", LIST, "--sampler", "random", "--max_runs", "3").status == 0
    assert len(world.begun) == 2


# Scores for ranking


def told():
    """Returns the results reported to a sampler, in order: the runs' ends and scores."""
    import optuna

    journal = optuna.storages.journal.JournalFileBackend("runs/tiny/study.journal")
    study = optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(journal))
    return [(trial.state.name, trial.value) for trial in study.trials]


def test_runs_of_which_none_has_a_val_bpb_are_ranked_by_val_loss(world, experiments):
    losses = {1: 5.0, 2: 4.5, 3: 4.75}
    world.endings = {f"tiny,seed={seed}": Ending(val_bpb=None, val_loss=loss) for seed, loss in losses.items()}
    ended = experiments("tiny.yaml", "--seeds", "1", "2", "3")
    assert ended.status == 0
    assert ended.err == [
        "completed 0:10  tiny,seed=1: val_loss 5.0000, keep",
        "completed 0:10  tiny,seed=2: val_loss 4.5000, keep",
        "completed 0:10  tiny,seed=3: val_loss 4.7500, discard",
    ]
    assert ended.out[1] == "best: 4.5000 runs/tiny/tiny,seed=2/version_0"
    assert told() == [("COMPLETE", 5.0), ("COMPLETE", 4.5), ("COMPLETE", 4.75)]


def test_a_run_without_val_bpb_among_others_has_no_rank_and_teaches_a_search_nothing(world, experiments):
    world.endings = {
        "tiny,seed=1": Ending(val_loss=1.4),
        "tiny,seed=2": Ending(val_bpb=None, val_loss=1.0),
        "tiny,seed=3": Ending("diverged", reason="the loss is NaN"),
    }
    ended = experiments("tiny.yaml", "--seeds", "1", "2", "3")
    assert ended.err == [
        "completed 0:10  tiny,seed=1: val_bpb 2.0000, keep",
        "completed 0:10  tiny,seed=2: no val_bpb, discard",
        "diverged  0:10  tiny,seed=3: the loss is NaN",
    ]
    assert ended.out[1] == "best: 2.0000 runs/tiny/tiny,seed=1/version_0"
    assert told() == [("COMPLETE", 2.0), ("FAIL", None), ("FAIL", None)]


def test_a_search_learns_from_val_loss_where_there_is_no_val_bpb(world, experiments):
    world.otherwise = Ending(val_bpb=None, val_loss=5.0)
    experiments("tiny.yaml", "--sampler", "tpe", "--space", RANGE, "--max_runs", "2")
    assert told() == [("COMPLETE", 5.0), ("COMPLETE", 5.0)]


# Failures


@pytest.mark.parametrize("status", ["error", "timeout", "diverged"])
def test_a_run_that_fails_is_on_record_and_the_rest_continue(world, experiments, status):
    world.endings["tiny,seed=1"] = Ending(status, reason="the disk is full")
    ended = experiments("tiny.yaml", "--seeds", "1", "2")
    assert ended.status == 1
    assert world.begun == ["tiny/tiny,seed=1", "tiny/tiny,seed=2"]
    assert ended.err[0] == f"{status:9} 0:10  tiny,seed=1: the disk is full"
    assert ended.out[0] == f"runs: 2 ended, of which now 1 {status}, 1 completed"
    assert ledger() == {"tiny,seed=1": status, "tiny,seed=2": "completed"}
    assert experiments("tiny.yaml", "--seeds", "1", "2").status == 0  # there is nothing left to do
    assert len(world.begun) == 2


def test_configs_that_cannot_run_are_named_before_the_first_run_and_cost_none(world, experiments):
    world.rejections["other.yaml"] = "n_heads: 3 cannot be used"
    ended = experiments("other.yaml", "tiny.yaml", "--study", "s", "--max_runs", "1")
    assert ended.status == 1
    assert world.events == ["check other.yaml", "check tiny.yaml", "run tiny"]
    assert ended.err[0] == "rejected        other: n_heads: 3 cannot be used"
    assert ended.out[0] == "runs: 1 ended, of which now 1 rejected, 1 completed"
    assert not Path("runs/s/other").exists()
    world.rejections.clear()
    assert experiments("other.yaml", "tiny.yaml", "--study", "s").status == 0  # after the config has been corrected
    assert world.begun == ["s/tiny", "s/other"]


SEARCHES = [(), ("--sampler", "random", "--max_runs", "3"), ("--sampler", "tpe", "--max_runs", "3")]


@pytest.mark.parametrize("sampler", SEARCHES, ids=["grid", "random", "tpe"])
def test_a_space_with_a_key_that_cannot_exist_is_rejected_without_the_best_run_of_an_earlier_study(
    world, experiments, sampler
):
    assert experiments("tiny.yaml").out[1].startswith("best: ")
    reason = "model.gpt.n_layrs: unknown key; did you mean n_layers?"
    world.rejections["--model.gpt.n_layrs"] = reason
    for _ in range(2):
        ended = experiments("tiny.yaml", "--space", "{model.gpt.d_ff: [32, 48], model.gpt.n_layrs: [1, 2]}", *sampler)
        assert (ended.status, ended.out) == (2, [])
        assert ended.err == [f"bytelm: error: space: 'model.gpt.n_layrs' cannot be used; {reason}"]
    assert len(world.begun) == 1


@pytest.mark.parametrize("sampler", SEARCHES, ids=["grid", "random", "tpe"])
def test_a_value_that_can_never_be_run_is_named_before_the_first_run(world, experiments, sampler):
    world.rejections["--model.gpt.n_heads 3"] = "n_heads: 3 cannot be used; accepted: divisors of d_model, which is 16"
    ended = experiments("tiny.yaml", "--space", "{model.gpt.d_ff: [32, 48], model.gpt.n_heads: [2, 3]}", *sampler)
    assert ended.status == 2
    (line,) = ended.err
    assert line.startswith("bytelm: error: space.model.gpt.n_heads: '3' cannot be used; n_heads: 3 cannot be used")
    assert world.begun == []
    assert not Path("runs").exists()


def test_a_bound_that_cannot_be_run_is_named(world, experiments):
    world.rejections["lr -1"] = "lr: -1 is not accepted; accepted: a number from 0"
    space = "{model.optimizer.lr: {low: -1, high: 2}}"
    ended = experiments("tiny.yaml", "--space", space, "--max_runs", "3")
    assert ended.err == [f"bytelm: error: space.model.optimizer.lr: '-1' cannot be used; {world.rejections['lr -1']}"]


def test_a_config_that_cannot_run_with_any_value_is_not_the_fault_of_the_space(world, experiments):
    world.rejections["tiny.yaml"] = "n_layers: 0 cannot be used"
    ended = experiments("tiny.yaml", "--space", LIST)
    assert ended.out[0] == "runs: 0 ended, of which now 2 rejected"
    assert not Path("runs/tiny").exists()
    ended = experiments("tiny.yaml", "--space", RANGE, "--max_runs", "2")
    assert ended.err == ["bytelm: error: config: 'tiny.yaml' cannot be used; n_layers: 0 cannot be used"]


def test_a_run_that_is_rejected_when_it_begins_costs_none(world, experiments):
    world.endings["tiny,seed=1"] = Ending("rejected", reason="the corpus has gone")
    ended = experiments("tiny.yaml", "--seeds", "1", "2", "--max_runs", "1")
    assert ended.status == 1
    assert world.begun == ["tiny/tiny,seed=1", "tiny/tiny,seed=2"]
    assert ended.err[0] == "rejected        tiny,seed=1: the corpus has gone"
    assert list(ledger()) == ["tiny,seed=2"]


@pytest.mark.parametrize("space", [LIST, RANGE], ids=["a few", "endless"])
def test_a_search_all_of_whose_runs_are_rejected_ends(world, experiments, space, monkeypatch):
    monkeypatch.setattr("bytelm.experiments.study.MOST_REPEATS", 20)
    world.otherwise = Ending("rejected", reason="the corpus has gone")
    ended = experiments("tiny.yaml", "--sampler", "random", "--space", space, "--max_runs", "3")
    assert ended.status == 1
    assert len(set(map(str, world.options))) == len(world.options)  # a rejected config is not tried again
    assert 0 < len(world.begun) < ENOUGH


def test_a_run_that_is_cut_again_and_again_is_given_up(world, experiments):
    world.endings["tiny,seed=1"] = Ending("interrupted", reason="interrupted by SIGTERM")
    ended = experiments("tiny.yaml", "--seeds", "1", "2")
    assert ended.status == 1
    assert world.begun == ["tiny/tiny,seed=1"] * MOST_CUTS + ["tiny/tiny,seed=2"]
    assert ended.err[0] == "interrupted 0:10  tiny,seed=1: interrupted by SIGTERM"
    assert ended.out[0] == "runs: 2 ended, of which now 1 interrupted, 1 completed"


def test_a_run_that_another_worker_has_gone_on_with_is_left_to_it(world, experiments, at_work):
    world.others["tiny,seed=1"] = lambda folder: at_work(folder / "log.txt")
    ended = experiments("tiny.yaml", "--seeds", "1", "2")
    assert ended.status == 0
    assert world.begun == ["tiny/tiny,seed=2"]
    assert ended.out[:2] == ["runs: 1 ended, of which now 1 completed", f"left: 1, {GOES_ON}"]


# Limits


def test_there_are_no_more_runs_than_there_may_be(world, experiments):
    seeds = ("tiny.yaml", "--seeds", "1", "2", "3", "--max_runs")
    ended = experiments(*seeds, "2")
    assert ended.status == 0
    assert len(world.begun) == 2
    assert ended.out[:2] == ["runs: 2 ended, of which now 2 completed", f"left: 1, {GOES_ON}"]
    experiments(*seeds, "2")
    assert len(world.begun) == 2
    assert experiments(*seeds, "3").out[0] == "runs: 3 ended, of which now 1 completed"
    assert world.begun == ["tiny/tiny,seed=1", "tiny/tiny,seed=2", "tiny/tiny,seed=3"]


def test_no_run_is_begun_that_would_not_fit(world, experiments):
    world.otherwise = Ending(seconds=100.0)
    seeds = ("tiny.yaml", "--seeds", "1", "2", "3", "4", "--total_time")
    ended = experiments(*seeds, "250s")
    assert ended.status == 0
    assert len(world.begun) == 2
    assert ended.out[1] == f"left: 2, {GOES_ON}"
    experiments(*seeds, "5m")
    assert len(world.begun) == 3


def test_a_run_that_goes_beyond_the_time_is_cut_and_continues_when_there_is_more(world, experiments):
    world.otherwise = Ending(seconds=100.0)
    seeds = ("tiny.yaml", "--seeds", "1", "2", "--total_time")
    ended = experiments(*seeds, "30s")
    assert ended.status == 1
    assert world.begun == ["tiny/tiny,seed=1"]
    assert on_record("tiny/tiny,seed=1")["status"] == "interrupted"
    assert ended.err == ["bytelm: note: no run of the study is completed"]
    assert wall_time(on_record("tiny/tiny,seed=1")) <= 30.0 + POLL
    assert ended.out[:2] == ["runs: 0 ended, of which now none", f"left: 2, {GOES_ON}"]
    ended = experiments(*seeds, "4m")
    assert (ended.status, ended.out[0]) == (0, "runs: 2 ended, of which now 2 completed")
    assert world.begun[1:] == ["tiny/tiny,seed=1", "tiny/tiny,seed=2"]
    assert ended.err[0] == "completed 1:40  tiny,seed=1: val_bpb 2.0000, keep"


def test_a_second_run_is_cut_when_all_together_have_taken_the_time(world, experiments):
    world.endings = {"tiny,seed=2": Ending(seconds=1000.0)}
    experiments("tiny.yaml", "--seeds", "1", "2", "--total_time", "60s")
    assert (on_record("tiny/tiny,seed=1")["status"], on_record("tiny/tiny,seed=2")["status"]) == (
        "completed",
        "interrupted",
    )
    assert 50.0 < wall_time(on_record("tiny/tiny,seed=2")) <= 50.0 + POLL


def test_the_time_of_other_workers_counts(world, experiments, at_work):
    other = Path("runs/tiny/elsewhere/version_0")
    at_work(other / ".lock")
    (other / "config.yaml").write_text("time_budget: {limit: 500 steps}")
    os.utime(other / "config.yaml", (time.time() - 100, time.time() - 100))
    world.otherwise = Ending(seconds=1000.0)
    experiments("tiny.yaml", "--total_time", "250s")
    assert on_record("tiny/tiny")["status"] == "interrupted"
    assert 140.0 < wall_time(on_record("tiny/tiny")) <= 150.0 + POLL


def test_no_run_is_begun_where_those_of_other_workers_will_take_the_time(world, experiments, at_work):
    make_run("tiny/before", total_time_secs=100.0)
    other = Path("runs/tiny/elsewhere/version_0")
    at_work(other / ".lock")
    (other / "config.yaml").write_text("time_budget: {limit: 500 steps}")
    experiments("tiny.yaml", "--total_time", "290s")
    assert world.begun == []
    experiments("tiny.yaml", "--total_time", "310s")
    assert world.begun == ["tiny/tiny"]


def test_a_run_that_never_states_its_budget_is_ended(world, experiments, monkeypatch):
    monkeypatch.setattr(runner, "default_timeout", lambda experiment: None)
    world.otherwise = Ending(seconds=5000.0)
    experiments("tiny.yaml")
    assert on_record("tiny/tiny")["status"] == "timeout"
    assert 1200.0 < wall_time(on_record("tiny/tiny")) <= 1200.0 + 2 * POLL


def test_a_study_with_another_space_is_rejected_and_nothing_is_left_of_the_try(world, experiments):
    search = ("tiny.yaml", "--sampler", "random", "--space")
    experiments(*search, "{model.gpt.d_model: [16, 32]}", "--max_runs", "1")
    for _ in range(2):
        ended = experiments(*search, "{model.gpt.d_model: [16, 32, 64]}", "--max_runs", "2")
        assert ended.status == 2
        assert "space: " in ended.err[-1]
        assert "another --study" in ended.err[-1]
    ended = experiments(*search, "{model.gpt.d_model: [16, 32]}", "--max_runs", "2")
    assert (ended.status, len(world.begun)) == (0, 2)


@pytest.mark.parametrize(
    ("ending", "listed"),
    [(Ending(), {"tiny": "completed"}), (Ending(seconds=100.0), {"tiny": "interrupted"}), (Ending("rejected"), {})],
    ids=["completed", "cut", "rejected"],
)
def test_the_ledger_that_is_named_is_there_and_has_all_runs(world, experiments, ending, listed):
    world.otherwise = ending
    ended = experiments("tiny.yaml", "--total_time", "30s")
    assert "ledger: runs/ledger.csv" in ended.out
    assert ledger() == listed


def test_a_run_takes_no_longer_than_it_may(world, experiments):
    world.endings["tiny,seed=1"] = Ending(seconds=1000.0)
    ended = experiments("tiny.yaml", "--seeds", "1", "2", "--run_timeout", "20s")
    assert ended.status == 1
    assert ledger() == {"tiny,seed=1": "timeout", "tiny,seed=2": "completed"}
    assert wall_time(on_record("tiny/tiny,seed=1")) <= 20.0 + POLL
    assert world.timeouts == [20.0, 20.0]


@pytest.mark.parametrize(
    ("limit", "timeout"),
    [("3m", 960.0), (["500 steps", "3m", "1h"], 960.0), ("500 steps", float("inf"))],
    ids=str,
)
def test_a_run_may_take_twice_its_budget_and_ten_minutes(world, experiments, limit, timeout):
    world.limit = limit
    experiments("tiny.yaml")
    assert world.timeouts == [timeout]
    assert default_timeout(Path("runs/tiny/tiny")) == timeout


def test_a_run_without_a_known_budget_has_no_limit(tmp_path):
    assert default_timeout(tmp_path / "nowhere") is None
    (tmp_path / "version_0").mkdir()
    assert default_timeout(tmp_path) is None


# Messages


@pytest.fixture
def terminal(world, experiments, monkeypatch):
    """Runs the command as on a terminal of this width; returns its output, in order."""

    class Shown(tqdm):
        def __init__(self, *args, disable=None, **options):
            super().__init__(*args, disable=bool(disable), **options)

    def terminal(*args, columns=120):
        monkeypatch.setattr(runner, "tqdm", Shown)
        monkeypatch.setattr(runner, "columns", lambda: columns)
        ended = experiments(*args)
        return [text.rstrip() for text in ended.err]  # each line was split where it was overwritten

    return terminal


def test_a_terminal_shows_how_far_the_runs_are(world, terminal):
    world.endings["tiny,seed=1"] = Ending(val_bpb=2.5)
    shown = terminal("tiny.yaml", "--seeds", "1", "2")
    assert "0/2 runs | tiny,seed=1 0:05" in shown
    assert "1/2 runs | best 2.5000 tiny,seed=1 | tiny,seed=2 0:05 | 0:05 left" in shown
    assert "completed 0:10  tiny,seed=1: val_bpb 2.5000, keep" in shown


@pytest.mark.parametrize("columns", [80, 66])
def test_the_line_fits_into_the_terminal_with_its_end_and_is_gone_at_the_end(world, terminal, columns):
    shown = terminal("tiny.yaml", "--space", "{model.gpt.norm: [LayerNorm, RMSNorm]}", "--seeds", "1", columns=columns)
    lines = [text for text in shown if text.startswith("1/2 runs | best 2.0000 ")]
    assert lines
    assert [text for text in lines if len(text) >= columns or not text.endswith(" 0:05 | 0:05 left")] == []
    assert shown[-1] == ""  # it overwrites the line


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (100, "1/3 runs | best 7.4931 tiny,d_ff=32,seed=1 | tiny,norm=RMSNorm,seed=1 0:31 | 0:12 left"),
        (79, "1/3 runs | best 7.4931 tiny,…ff=32,seed=1 | tiny,…SNorm,seed=1 0:31 | 0:12 left"),
        (62, "1/3 runs | best 7.4931 ti…seed=1 | tin…seed=1 0:31 | 0:12 left"),
        (20, "1/3 runs | best 7.49"),
    ],
)
def test_names_give_way_where_the_line_is_too_long(width, shown):
    names = ("7.4931", "tiny,d_ff=32,seed=1"), "tiny,norm=RMSNorm,seed=1"
    assert status_line(1, 3, *names, 31, 12, width) == shown


def test_a_run_that_was_cut_is_counted_once_and_with_all_its_time(world, terminal):
    world.otherwise = Ending(seconds=100.0)
    seeds = ("tiny.yaml", "--seeds", "1", "2", "--total_time")
    terminal(*seeds, "30s")
    shown = terminal(*seeds, "4m")
    first = next(text for text in shown if "runs | " in text)
    assert first.startswith("0/2 runs | tiny,seed=1 0:")
    assert "0/2 runs | tiny,seed=1 1:35 | 2:25 left" in shown
    assert "1/2 runs | best 2.0000 tiny,seed=1 | tiny,seed=2 0:05 | 1:35 left" in shown


def test_a_run_that_began_again_in_another_folder_is_counted_once(world, experiments):
    make_run("tiny/tiny,seed=1", status="interrupted", version=7)
    ended = experiments("tiny.yaml", "--seeds", "1")
    assert ended.out[0] == "runs: 1 ended, of which now 1 completed"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--max_runs", "5"), "1/5 runs | best 2.0000 {first} | {second} 0:05 | 0:35 left"),
        (("--total_time", "100s"), "1/? runs | best 2.0000 {first} | {second} 0:05 | 1:25 left"),
        (("--max_runs", "5", "--total_time", "45s"), "1/5 runs | best 2.0000 {first} | {second} 0:05 | 0:30 left"),
    ],
    ids=str,
)
def test_a_terminal_shows_how_long_a_search_may_take(world, terminal, options, shown):
    texts = terminal("tiny.yaml", "--sampler", "random", "--sampler_seed", "0", "--space", RANGE, *options)
    first, second = (Path(experiment).name for experiment in world.begun[:2])
    assert shown.format(first=first, second=second) in texts


def test_the_report_is_named_as_a_shell_takes_it(world, experiments):
    ended = experiments("tiny.yaml", "--study", "my runs/of (today)")
    assert ended.out[-1] == "report: bytelm report 'runs/my runs/of (today)'"


# Disks


@pytest.mark.parametrize("reason", ["last.ckpt: the checkpoint could not be written (No space left on device)"])
def test_a_run_that_ends_by_a_full_disk_ends_the_command_which_then_continues(world, experiments, reason):
    seeds = ("tiny.yaml", "--seeds", "1", "2", "3")
    world.endings["tiny,seed=2"] = Ending("error", reason=reason, exit_status=5)
    for _ in range(2):
        ended = experiments(*seeds)
        assert ended.status == 5
        assert ended.out == []
        assert ended.err[-1] == (
            f"bytelm: error: {reason}; once this is solved, the same command continues tiny/tiny,seed=2"
        )
    assert world.begun == ["tiny/tiny,seed=1", "tiny/tiny,seed=2", "tiny/tiny,seed=2"]
    assert ledger() == {"tiny,seed=1": "completed", "tiny,seed=2": "error"}
    world.endings["tiny,seed=2"] = Ending(seconds=20.0)
    ended = experiments(*seeds)
    assert (ended.status, ended.out[0]) == (0, "runs: 3 ended, of which now 2 completed")
    assert set(ledger().values()) == {"completed"}


def test_a_search_continues_after_a_full_disk_and_loses_no_run(world, experiments):
    search = ("tiny.yaml", "--sampler", "random", "--space", RANGE, "--max_runs", "3")
    with small_disk("runs", "64k") as disk:
        assert experiments(*search[:-1], "1").status == 0
        for leave in (12_288, 8_192, 4_096, 0):
            disk.fill(leave)
            ended = experiments(*search)
            assert (ended.status, len(ended.err)) == (5, 1) or (leave and ended.status in (0, 5))
            disk.empty()
        ended = experiments(*search)
        assert (ended.status, ended.out[0].split(",")[0]) == (0, "runs: 3 ended")
        assert list(ledger().values()) == ["completed"] * 3


@pytest.mark.parametrize("kind", ["a file", "read-only"])
def test_a_folder_that_cannot_be_used_is_reported_in_one_line(world, experiments, kind):
    def check():
        ended = experiments("tiny.yaml")
        assert (ended.status, ended.out) == (5, [])
        (line,) = ended.err
        assert line.startswith("bytelm: error: runs/tiny: the folder cannot be created (")

    if kind == "a file":
        Path("runs").touch()
        check()
        return
    with small_disk("runs") as disk:
        disk.read_only()
        check()


def test_damaged_files_are_named_once_and_the_runs_continue(world, experiments):
    for name, file in (("one", "record.json"), ("two", "config.yaml")):
        (make_run(f"tiny/{name}") / file).write_text("{")
    ended = experiments("tiny.yaml", "--seeds", "1", "2", "3")
    assert ended.status == 0
    notes = [line for line in ended.err if "note" in line]
    assert [note.split()[2] for note in notes] == [
        "runs/tiny/one/version_0/record.json",
        "runs/tiny/two/version_0/config.yaml",
    ]
    assert ended.out[0] == "runs: 3 ended, of which now 3 completed"


@pytest.mark.parametrize(
    ("storage", "status", "said"),
    [
        (
            "nosuch://host/queue",
            2,
            ["storage: 'nosuch://host/queue' cannot be used", "accepted: a file, or a database"],
        ),
        ("postgresql+nodriver://me:secret@host/q", 2, ["storage: 'postgresql+nodriver://me:***@host/q' cannot be use"]),
        ("sqlite:////nowhere/queue.db", 5, ["storage: sqlite:////nowhere/queue.db cannot be used (unable to open"]),
        ("sqlite:///tiny.yaml", 5, ["storage: sqlite:///tiny.yaml cannot be used (file is not a database)"]),
        ("nowhere/queue", 5, ["nowhere/queue: the queue cannot be opened (No such file or directory)"]),
        ("tiny.yaml", 5, ["tiny.yaml: line 1 is damaged, or the file is not a study's queue"]),
    ],
)
def test_a_storage_that_cannot_be_used_is_reported_in_one_line_without_its_password(
    world, experiments, storage, status, said
):
    ended = experiments("tiny.yaml", "--storage", storage)
    assert ended.status == status
    (line,) = ended.err
    assert [part for part in said if part not in line] == [], line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], ["configs", "required"]),
        (["tiny.yaml", "--seeds", "one"], ["seeds: 'one' is not accepted; accepted: a whole number"]),
        (["tiny.yaml", "--seeds"], ["seeds: its value is missing"]),
        (["tiny.yaml", "--space", "[]"], ["space: '[]' cannot be used; accepted: a YAML file, or {key: [values]}"]),
        (
            [
                "tiny.yaml",
                "--sampler_seed",
                "-1",
                "--max_runs",
                "1",
                "--space",
                "{model.optimizer.lr: {low: 1, high: 2}}",
            ],
            ["sampler_seed: -1 cannot be used; accepted: a whole number from 0 to 4294967295"],
        ),
        (["tiny.yaml", "--nothing", "3"], ["nothing: unknown key"]),
        (
            ["tiny.yaml", "--time_budget.limit", "10s"],
            ["time_budget.limit: unknown key; did you mean -- --time_budget.limit 10s? Options after -- "],
        ),
        (["tiny.yaml", "--time_budget.limit=10s"], ["did you mean -- --time_budget.limit=10s? "]),
        (["tiny.yaml", "--study", "../x"], ["study: '../x' cannot be used", "the name of a folder in runs/"]),
        (["tiny.yaml", "--study", "a/../../x"], ["study: 'a/../../x' cannot be used"]),
        (["tiny.yaml", "--study", "/x"], ["study: '/x' cannot be used"]),
        (["tiny.yaml", "--max_runs", "0"], ["max_runs: 0 is not accepted; accepted: a whole number above 0"]),
        (["tiny.yaml", "--max_runs", "many"], ["max_runs: 'many' is not accepted; accepted: a whole number above 0"]),
        (["tiny.yaml", "--total_time", "100 steps"], ["total_time: '100 steps' cannot be used", "180s, 3m"]),
        (["tiny.yaml", "--total_time", "5%"], ["total_time: '5%' cannot be used", "180s, 3m"]),
        (["tiny.yaml", "--total_time", "0s"], ["total_time: '0s' cannot be used", "180s, 3m"]),
        (["tiny.yaml", "--total_time", "soon"], ["total_time: 'soon' is not a duration", "180s, 3m"]),
        (["tiny.yaml", "--run_timeout", "3 Mtok"], ["run_timeout: '3 Mtok' cannot be used", "180s, 3m"]),
        (["tiny.yaml", "--run_timeout", "0s"], ["run_timeout: '0s' cannot be used", "180s, 3m"]),
        (
            ["tiny.yaml", "--sampler", "genetic"],
            ["sampler: 'genetic' is not accepted; accepted: grid, random, tpe, gp, null"],
        ),
        (["tiny.yaml", "--sampler_seed", "1"], ["sampler_seed: 1 cannot be used; a grid draws nothing"]),
        (["tiny.yaml", "--sampler", "random", "--space", RANGE], ["a random search needs a limit", "max_runs or"]),
        (["tiny.yaml", "--sampler", "tpe", "--space", RANGE], ["a tpe search needs a limit", "max_runs or total_time"]),
        (
            ["tiny.yaml", "--sampler", "tpe", "--max_runs", "3"],
            ["sampler: 'tpe' cannot be used", "it needs a space to draw from"],
        ),
        (["tiny.yaml", "--space", RANGE], ["a gp search needs a limit", "max_runs or total_time"]),
        (["tiny.yaml", "--sampler", "grid", "--space", RANGE], ["space.model.optimizer.lr", "a grid needs a list of"]),
        (["tiny.yaml", "--space", "{lr: 3}"], ["space.lr: 3 cannot be used", "a list of values"]),
        (["tiny.yaml", "--space", "[1, 2]"], ["space: '[1, 2]' cannot be used", "a YAML file, or {key: [values]}"]),
    ],
    ids=str,
)
def test_a_bad_option_is_rejected_in_one_line_before_anything_is_made(world, experiments, args, said):
    ended = experiments(*args)
    assert (ended.status, ended.out) == (2, [])
    (line,) = ended.err
    assert line.startswith("bytelm: error: ")
    assert [part for part in said if part not in line] == [], line
    assert not Path("runs").exists()


def test_a_config_that_is_not_there_or_no_config_is_rejected_by_its_name(world, experiments, monkeypatch):
    class CheckerOfThisProcess(Checker):
        def check(self, options):
            return _check(list(options))

    monkeypatch.setattr(runner, "Checker", CheckerOfThisProcess)
    Path("broken.yaml").write_text("model: [\n")
    ended = experiments("nowhere.yaml", "broken.yaml", "--study", "s")
    assert (ended.status, world.begun) == (1, [])
    nowhere, broken = ended.err
    assert nowhere.startswith("rejected        nowhere: config: ")
    assert "nowhere.yaml' cannot be used; " in nowhere
    assert broken.startswith("rejected        broken: config: ")
    assert "broken.yaml' cannot be used; line 2" in broken
    assert ended.out[0] == "runs: 0 ended, of which now 2 rejected"


# The whole program

SLOW = """
import os
import time
from pathlib import Path

from lightning.pytorch import Callback


class Slow(Callback):
    def on_train_start(self, *args):
        Path("pid").write_text(str(os.getpid()))

    def on_train_batch_start(self, *args):
        time.sleep(0.02)
"""
STEPS = 100
OPTIONS = (
    *("--time_budget.limit", f"{STEPS} steps"),
    *("--last_checkpoint.every", "5 steps"),
    "--trainer.callbacks+=my_slow.Slow",
)


@pytest.fixture
def program(folder):
    """Starts the program; its output goes to the files `stdout` and `stderr`."""
    started = []
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def program(*args):
        command = [sys.executable, "-m", "bytelm", "experiments", *args, "--", *OPTIONS]
        with open("stdout", "w") as out, open("stderr", "w") as err:
            started.append(programs.Program(command, cwd=folder, env=environment, stdout=out, stderr=err))
        return started[-1]

    Path("my_slow.py").write_text(SLOW)
    yield program
    for process in started:
        process.kill()
        process.wait()


def test_a_study_continues_after_a_kill(program, until, alive):
    seeds = ("tiny.yaml", "--seeds", "1", "2")
    killed = program(*seeds)
    until(Path("runs/tiny/tiny,seed=1/version_0/checkpoints/last.ckpt").exists, 120)
    pid = Path("pid").read_text()
    assert alive(pid)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    until(lambda: not alive(pid), 10)
    assert on_record("tiny/tiny,seed=1")["status"] == "interrupted"
    assert on_record("tiny/tiny,seed=1")["total_steps"] < STEPS
    assert not Path("runs/tiny/tiny,seed=2").exists()

    assert program(*seeds).wait(240) == 0, Path("stderr").read_text()
    assert sorted(path.as_posix() for path in Path("runs").rglob("version_*")) == [
        "runs/tiny/tiny,seed=1/version_0",
        "runs/tiny/tiny,seed=2/version_0",
    ]
    for seed in (1, 2):
        record = on_record(f"tiny/tiny,seed={seed}")
        assert (record["status"], record["total_steps"], record["seed"]) == ("completed", STEPS, seed)
    assert on_record("tiny/tiny,seed=1")["wall_time_secs"] > on_record("tiny/tiny,seed=1")["total_time_secs"]
    log = Path("runs/tiny/tiny,seed=1/log.txt").read_text()
    assert log.count("has no run yet; starting a new run") == 1  # and not again after resuming
    assert ledger() == {"tiny,seed=1": "completed", "tiny,seed=2": "completed"}
    lines = Path("stderr").read_text().splitlines()
    assert [re.sub(r" \d+:\d\d  ", " ", line).split(": ")[0] for line in lines] == [
        "completed tiny,seed=1",
        "completed tiny,seed=2",
    ]
    assert Path("stdout").read_text().startswith("runs: 2 ended, of which now 2 completed\nbest: ")


def test_a_study_continues_after_a_ctrl_c(program, until, alive):
    interrupted = program("tiny.yaml")
    until(Path("runs/tiny/tiny/version_0/checkpoints/last.ckpt").exists, 120)
    pid = Path("pid").read_text()
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(60) == 130
    assert not alive(pid)
    assert Path("stderr").read_text() == (
        "bytelm: error: interrupted by SIGINT in tiny/tiny; the same command continues it\n"
    )
    assert on_record("tiny/tiny")["status"] == "interrupted"
    assert on_record("tiny/tiny")["total_steps"] < STEPS

    assert program("tiny.yaml").wait(240) == 0, Path("stderr").read_text()
    assert (on_record("tiny/tiny")["status"], on_record("tiny/tiny")["total_steps"]) == ("completed", STEPS)
    assert [path.as_posix() for path in Path("runs").rglob("version_*")] == ["runs/tiny/tiny/version_0"]


# Pruning


def curve(final, n=9):
    """Scores at each tenth of a budget, which fall towards `final`."""
    return {share / 10: final + 1.0 - share / 10 for share in range(1, n + 1)}


def many(world, scores):
    """Configs r0.yaml, r1.yaml, …, whose runs end with these scores; returns their names."""
    names = [f"r{place}" for place in range(len(scores))]
    for name, score in zip(names, scores, strict=True):
        Path(f"{name}.yaml").write_text(f"name: {name}\n")
        world.endings[name] = Ending(val_bpb=score, seconds=100.0, curve=curve(score))
    return [f"{name}.yaml" for name in names]


@pytest.mark.parametrize("method", ["median", "hyperband"])
def test_runs_that_cannot_win_end_early_and_the_time_goes_to_others(world, experiments, method):
    configs = many(world, [2.0, 2.1, 2.2, 2.3, 2.4, 1.9, *(2.5 + place / 10 for place in range(6)), 1.8])
    ended = experiments(*configs, "--prune", method, "--study", "s", "--total_time", "1000s")
    assert ended.status == 0
    statuses = {run: on_record(f"s/{run}")["status"] for run in (Path(name).stem for name in configs)}
    assert statuses["r5"] == statuses["r12"] == "completed"  # without pruning, r12 is beyond the 1000 s
    assert list(statuses.values()).count("pruned") >= 4
    assert ended.out[1] == "best: 1.8000 runs/s/r12/version_0"
    pruned = next(name for name, status in statuses.items() if status == "pruned")
    assert re.fullmatch(
        r"at [1-9]0% of its budget its score was \d\.\d{4}; .*Pruner ended it", on_record(f"s/{pruned}")["reason"]
    )
    again = experiments(*configs, "--prune", method, "--study", "s")
    assert again.out[0] == "runs: 13 ended, of which now none"
    assert len(world.begun) == 13


def test_without_the_option_no_run_ends_early(world, experiments):
    configs = many(world, [2.0] * 6 + [9.0])
    experiments(*configs, "--study", "s")
    assert set(ledger().values()) == {"completed"}


def test_runs_of_other_budgets_and_schedules_are_no_measure(world, experiments):
    configs = many(world, [2.0] * 6 + [9.0])
    experiments(*configs[:6], "--study", "s", "--prune", "median")
    world.limit = "5 steps"
    experiments(configs[6], "--study", "s", "--prune", "median")
    assert ledger()["r6"] == "completed"


def test_runs_that_may_be_pruned_are_validated_during_training(world, experiments):
    Path("late.yaml").write_text("trainer: {val_check_interval: null}\n")
    experiments("late.yaml", "--study", "s", "--prune", "median")
    assert world.options[0][-2:] == ["--trainer.val_check_interval", "10%"]
    experiments("late.yaml", "--study", "other")
    assert "--trainer.val_check_interval" not in world.options[1]


def test_max_runs_counts_pruned_runs_and_a_search_learns_from_them(world, experiments):
    world.otherwise = Ending(val_bpb=2.0, seconds=100.0, curve=curve(2.0))
    options = ["--space", RANGE, "--sampler", "tpe", "--study", "s", "--prune", "median", "--sampler_seed", "1"]
    experiments("tiny.yaml", *options, "--max_runs", "6")
    world.otherwise = Ending(val_bpb=3.0, seconds=100.0, curve=curve(3.0))
    ended = experiments("tiny.yaml", *options, "--max_runs", "9")
    assert ended.out[0] == "runs: 9 ended, of which now 3 pruned"
    assert len(world.begun) == 9
