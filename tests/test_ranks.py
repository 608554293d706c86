"""Two ranks together, with real processes, clocks, signals and deaths (gloo on the CPU).

Tested here, with ranks that Lightning starts and, where it differs, with ranks that torchrun starts:

- with any clock and any speed of a rank, all take the same steps at the same learning rates, rank 0's
  clock keeps the budget, and they agree on that without a collective in every step;
- a signal to any of them ends all of them with a checkpoint, from which they resume to bit-identical weights;
- when one dies, fails or hangs, the others end within a minute and say which one it was;
- one rank's NaN ends all; two ranks' score is one's; the random states of each rank are kept.
"""

import contextlib
import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from itertools import pairwise
from pathlib import Path

import programs
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from bytelm.data.shard_file import write_shard

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = """
model:
  gpt: {d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 32}
  optimizer: {class_path: AdamW, init_args: {lr: 3e-3}}
data:
  class_path: Bytes
  init_args: {path: corpus.txt, batch_size: 4, seq_len: 32, eval_bytes: 1184}
trainer: {accelerator: cpu, devices: 2, strategy: ddp, gradient_clip_val: 1.0, log_every_n_steps: 1}
time_budget: {limit: 10 steps}
samples: {max_new_tokens: 0}
"""  # 37 rows to score: not as many for one rank as for the other
SAMPLED = ("--samples.max_new_tokens", "4")
DROPOUT = ("--model.gpt.dropout", "0.2", "--model.gpt.attention", "{class_path: SDPA, init_args: {dropout: 0.2}}")
START_SECONDS = 90.0  # that the start of two ranks may take on a busy machine
LAUNCHERS = ("lightning", "torchrun")


def write_inputs(folder):
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n"]
    rng = random.Random(0)
    (folder / "corpus.txt").write_text(" ".join(rng.choice(words) for _ in range(4000)))
    (folder / "tiny.yaml").write_text(CONFIG)


def callback(name, **values):
    return f"--trainer.callbacks+={json.dumps({'class_path': f'rank_callbacks.{name}', 'init_args': values})}"


class Run:
    """`python -m bytelm …` over two ranks, and what they report.

    Args:
        folder: Where it runs.
        options: Those of the command line.
        subcommand: `fit` or `validate`.
        launcher: `lightning` or `torchrun`.
    """

    def __init__(self, folder, *options, subcommand="fit", launcher="lightning"):
        self.folder = folder
        self.reports = folder / f"reports-{uuid.uuid4().hex}"
        self.reports.mkdir()
        launch, start = ["-m"], programs.Program
        if launcher == "torchrun":
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
            start = subprocess.Popen
        command = [sys.executable, *launch, "bytelm", subcommand, "--config", "tiny.yaml"]
        command += [callback("Report", folder=str(self.reports)), *options]
        self.mark = uuid.uuid4().hex[:15]
        environment = os.environ | {
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            programs.MARK: self.mark,
        }
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "PL_GLOBAL_SEED"):
            environment.pop(name, None)
        # Files, not pipes: a rank that outlives the others would keep a pipe open, and the test would wait for it.
        with (self.reports / "out").open("w") as out, (self.reports / "err").open("w") as err:
            self.process = start(command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True)

    @property
    def err(self):
        return (self.reports / "err").read_text()

    def events(self, rank, kind=None):
        path = self.reports / f"rank{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["event"])]

    def pid(self, rank):
        return self.events(rank, "setup")[0]["pid"]

    def wait_for(self, what):
        """Waits until `what()` is true, as long as the run lives."""
        deadline = time.monotonic() + START_SECONDS
        while not what():
            assert self.process.poll() is None, f"the run has ended with {self.process.returncode}: {self.err}"
            assert time.monotonic() < deadline, self.err
            time.sleep(0.05)

    def wait_for_step(self, step):
        self.wait_for(lambda: all(len(self.events(rank, "step")) >= step for rank in (0, 1)))

    def end(self, timeout=START_SECONDS):
        """Waits until all processes have ended; returns the main one's exit status and how many seconds it took."""
        began = time.monotonic()
        while self.process.poll() is None or self.alive():
            assert time.monotonic() - began < timeout, f"{self.alive()} have not ended: {self.err}"
            time.sleep(0.05)
        seconds = time.monotonic() - began
        print(f"[{self.folder.name}: status {self.process.returncode} after {seconds:.1f} s]")  # shown by pytest -rP
        return self.process.returncode, seconds

    def ended_well(self):
        status, _ = self.end(START_SECONDS + 60)
        assert status == 0, self.err
        return self

    def alive(self):
        """Processes of this run, also those in other sessions and those whose parent has ended."""
        return list(programs.marked(self.mark))

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def record(self, experiment="tiny", version=0):
        return json.loads((self.folder / f"runs/{experiment}/version_{version}/record.json").read_text())

    def checkpoint(self, experiment="tiny"):
        return last_checkpoint(self.folder, experiment)


def last_checkpoint(folder, experiment):
    return torch.load(folder / f"runs/{experiment}/version_0/checkpoints/last.ckpt", weights_only=True)


@pytest.fixture
def start(tmp_path):
    """Starts a run in a folder with corpus.txt and tiny.yaml."""
    write_inputs(tmp_path)
    runs = []

    def start(*options, **how):
        runs.append(Run(tmp_path, *options, **how))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


# One clock, one rate, one end

SKEWED = [
    pytest.param(callback("Skew", factor=1.5, offset=100), "training", id="fast"),
    pytest.param(callback("Skew", factor=0.6, offset=-30), "training", id="slow", marks=pytest.mark.slow),
    pytest.param(callback("Skew", factor=1.5, offset=100), "run", id="fast-scope-run", marks=pytest.mark.slow),
    pytest.param(callback("Skew", factor=0.6, offset=0), "run", id="slow-scope-run", marks=pytest.mark.slow),
]
SPEEDS = [
    pytest.param({"seconds": [0.03, 0.1]}, id="rank-1-slow", marks=pytest.mark.slow),
    pytest.param({"seconds": [0.1, 0.03]}, id="rank-0-slow", marks=pytest.mark.slow),
    pytest.param({"seconds": [0.03, 0.03], "jitter": 0.1}, id="varying", marks=pytest.mark.slow),
]


def assert_together(run, limit):
    """Both ranks took the same steps at the same rates, up to the limit by rank 0's clock."""
    steps = [run.events(rank, "step") for rank in (0, 1)]
    ends = [run.events(rank, "end") for rank in (0, 1)]
    assert len(steps[0]) == len(steps[1]) > 10
    for zero, one in zip(*steps, strict=True):
        assert (zero["step"], zero["lr"], zero["fraction"]) == (one["step"], one["lr"], one["fraction"])
    assert len({tuple(step["lr"]) for step in steps[0]}) > 10, "the rate is meant to change from step to step"
    assert ends[0] == ends[1]
    assert ends[0][0]["steps"] == len(steps[0])
    used = run.record()["training_time_secs"]
    times = [step["at"] for step in steps[0]]
    slowest = max(after - before for before, after in pairwise(times))
    print(f"[budget {limit} s: {limit - used:+.4f} s left; slowest step {slowest:.3f} s]")
    assert abs(limit - used) < slowest


@pytest.mark.parametrize(("skew", "scope"), SKEWED)
def test_ranks_with_different_clocks_take_the_same_steps(start, skew, scope):
    slow = callback("Slow", seconds=[0.06, 0.06])
    budget = {"limit": "6s"} if scope == "training" else {"limit": "20s", "scope": "run", "reserve": "1s"}
    options = (f"--time_budget={json.dumps(budget)}", "--lr_schedule", "Cosine")
    run = start(skew, slow, *options).ended_well()
    if scope == "training":
        assert_together(run, 6)
    else:
        # Start-up counts too: 19 s are for it and for training.
        record = run.record()
        assert_together(run, 19 - record["startup_time_secs"])
        assert record["total_time_secs"] > 18


@pytest.mark.parametrize("speeds", SPEEDS)
def test_ranks_of_different_speeds_take_the_same_steps(start, speeds):
    slow = callback("Slow", **speeds)
    run = start(slow, "--time_budget.limit", "5s", "--lr_schedule", "Cosine").ended_well()
    assert_together(run, 5)


def test_ranks_agree_without_a_collective_in_every_step(start):
    quick = callback("Slow", seconds=[0.01, 0.01])
    options = ("--time_budget.limit", "400 steps", "--trainer.log_every_n_steps", "10")  # a logged loss is all ranks'
    run = start(quick, callback("CountCollectives"), *options).ended_well()
    for rank in (0, 1):
        calls = json.loads((run.folder / f"collectives{rank}.json").read_text())
        steps = sorted({step for step, _ in calls if 50 <= step < 350})
        print(f"[rank {rank}: collectives in {len(steps)} of 300 steps]")
        assert steps, "the ranks do meet once in a while: the count has missed it"
        assert len(steps) < 60


def test_ddp_does_not_send_buffers_around_before_every_batch(start):
    run = start(callback("OwnBuffers"), *SAMPLED).ended_well()  # its reports are in the folder of the run
    for shown in ("budget  ", "score   ", "sample  continues ", "next    "):
        assert run.err.count(shown) == 1, "only the first rank prints"
    zero, one = (json.loads((run.folder / f"rank{rank}.jsonl").read_text()) for rank in (0, 1))
    assert zero["last"] == zero["first"]
    assert one["last"] == one["first"] == zero["first"] / 2


def test_lightnings_broadcast_in_every_step_is_still_where_interruption_switches_it_off():
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance)


# Signals


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """last.ckpt of an undisturbed run of 40 steps."""
    folder = tmp_path_factory.mktemp("uncut")
    write_inputs(folder)
    run = Run(folder, "--time_budget.limit", "40 steps", *DROPOUT)
    try:
        return run.ended_well().checkpoint()
    finally:
        run.kill()


def send(run, to, signum):
    if to == "group":
        os.killpg(run.process.pid, signum)
    elif to == "main":
        run.process.send_signal(signum)
    else:
        os.kill(run.pid(to), signum)


SENT = [
    pytest.param("lightning", 0, signal.SIGTERM, id="SIGTERM-to-rank-0", marks=pytest.mark.slow),
    pytest.param("lightning", 1, signal.SIGTERM, id="SIGTERM-to-rank-1"),
    pytest.param("lightning", "group", signal.SIGINT, id="SIGINT-to-all", marks=pytest.mark.slow),
    pytest.param("torchrun", "main", signal.SIGTERM, id="SIGTERM-to-torchrun", marks=pytest.mark.slow),
    pytest.param("torchrun", 1, signal.SIGTERM, id="SIGTERM-to-rank-1-of-torchrun", marks=pytest.mark.slow),
    pytest.param("torchrun", "main", signal.SIGINT, id="SIGINT-to-torchrun", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("launcher", "to", "signum"), SENT)
def test_a_signal_to_any_rank_ends_all_and_they_resume_as_if_uninterrupted(start, uncut, launcher, to, signum):
    options = ("--time_budget.limit", "40 steps", *DROPOUT)
    run = start(callback("Slow", seconds=[0.3, 0.3]), *options, launcher=launcher)
    run.wait_for_step(8)
    send(run, to, signum)
    status, seconds = run.end()
    assert seconds < 40, run.err
    name = signal.Signals(signum).name
    if launcher == "lightning":
        assert status == 128 + signum, run.err
        assert "Traceback" not in run.err
    else:
        assert status != 0  # torchrun's own, which also adds a traceback of its own
    record = run.record()
    assert (record["status"], name in record["reason"]) == ("interrupted", True), record["reason"]
    checkpoint = run.checkpoint()
    steps = checkpoint["callbacks"]["TimeBudget"]["steps"]
    # What is in the checkpoint is what both ranks have done.
    assert [len(run.events(rank, "step")) for rank in (0, 1)] == [steps, steps]
    assert record["total_steps"] == steps
    assert 8 <= steps < 40
    assert f"interrupted by {name} after step {steps}" in run.err
    assert run.err.count("bytelm: error:") == 1, run.err
    of_ranks = checkpoint["callbacks"]["Resume"]["random_states"]
    assert len(of_ranks) == 2

    start(*options, "--ckpt_path", "last", launcher=launcher).ended_well()
    resumed = run.checkpoint()
    assert resumed["callbacks"]["TimeBudget"]["steps"] == 40
    for name, value in uncut["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    for rank in (0, 1):
        states = [c["callbacks"]["Resume"]["random_states"][rank]["torch"] for c in (uncut, resumed)]
        assert torch.equal(*states)


def test_each_rank_keeps_a_random_state_of_its_own(uncut):
    """Without dropout both would have the state of the seed; with the same masks on both, a rank would be wasted."""
    zero, one = uncut["callbacks"]["Resume"]["random_states"]
    assert not torch.equal(zero["torch"], one["torch"])


@pytest.mark.parametrize(
    ("launcher", "to"),
    [
        ("lightning", 0),
        pytest.param("lightning", 1, marks=pytest.mark.slow),
        pytest.param("torchrun", "main", marks=pytest.mark.slow),
        pytest.param("torchrun", 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_all_ranks_while_they_compile(start, launcher, to):
    run = start(callback("Slow", at_start=True), launcher=launcher)
    run.wait_for(lambda: all((run.folder / f"compiling{rank}").exists() for rank in (0, 1)))
    send(run, to, signal.SIGTERM)
    status, seconds = run.end()
    assert seconds < 40, run.err
    record = run.record()
    assert (record["status"], "SIGTERM" in record["reason"]) == ("interrupted", True), record
    if launcher == "lightning":
        assert status == 143, run.err
        assert "Traceback" not in run.err
    assert "interrupted by SIGTERM" in run.err


# A rank that dies


@pytest.fixture
def broken(start):
    """Starts two ranks of an endless run, and disturbs one of them after a few steps."""

    def broken(rank, signum, launcher):
        options = ("--time_budget.limit", "100000 steps", "--trainer.enable_progress_bar", "false")
        run = start(callback("Slow", seconds=[0.05, 0.05]), *options, launcher=launcher)
        run.wait_for_step(5)
        os.kill(run.pid(rank), signum)
        return run

    return broken


def test_when_rank_1_is_killed_rank_0_ends_and_says_so(broken):
    run = broken(1, signal.SIGKILL, "lightning")
    pid = run.pid(1)
    status, seconds = run.end(timeout=75)
    assert seconds < 60
    assert status == 7, run.err
    (line,) = [line for line in run.err.splitlines() if line.startswith("bytelm: error:")]
    assert "rank 1" in line
    assert f"pid {pid}" in line
    assert "SIGKILL" in line
    record = run.record()
    assert record["status"] == "error"
    assert "rank 1" in record["reason"]
    assert "SIGKILL" in record["reason"]


@pytest.mark.slow
def test_when_rank_0_is_killed_rank_1_ends_and_says_so(broken):
    run = broken(0, signal.SIGKILL, "lightning")
    _, seconds = run.end(timeout=75)
    assert seconds < 60
    (line,) = [line for line in run.err.splitlines() if line.startswith("bytelm: error:")]
    assert "rank 0" in line
    assert f"pid {run.pid(0)}" in line


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_of_torchrun_is_killed_all_end_and_it_is_named(broken, rank):
    run = broken(rank, signal.SIGKILL, "torchrun")
    pid = run.pid(rank)
    status, seconds = run.end(timeout=75)
    assert seconds < 60
    assert status != 0
    named = f"rank {rank}" in run.err or f"rank      : {rank}" in run.err  # bytelm's line or torchrun's report
    assert named, run.err
    assert str(pid) in run.err


@pytest.mark.parametrize(
    ("launcher", "failing"),
    [
        ("lightning", 1),
        pytest.param("lightning", 0, marks=pytest.mark.slow),
        pytest.param("torchrun", 1, marks=pytest.mark.slow),
        pytest.param("torchrun", 0, marks=pytest.mark.slow),
    ],
)
def test_when_a_rank_fails_the_others_end_and_name_it_and_its_error(start, launcher, failing):
    run = start(callback("Fail", failing=failing), "--time_budget.limit", "1000 steps", launcher=launcher)
    run.wait_for_step(4)
    status, seconds = run.end(timeout=75)
    assert seconds < 60
    assert status != 0
    assert "ValueError: no such thing" in run.err
    if launcher == "lightning":  # torchrun ends the others before they can say anything, and reports the first failure
        lines = [line for line in run.err.splitlines() if line.startswith("bytelm: error:")]
        assert any(f"rank {failing}" in line and "ValueError: no such thing" in line for line in lines), run.err
        assert status == (7 if failing == 1 else 1)
        record = run.record()
        assert record["status"] == "error"
        assert "no such thing" in record["reason"]


@pytest.mark.parametrize("how", ["overwritten", pytest.param("truncated", marks=pytest.mark.slow)])
def test_a_corpus_that_changes_ends_all_ranks_with_status_3(start, how, tmp_path):
    shards = [tmp_path / f"{split}.bin" for split in ("train", "val")]
    for shard in shards:
        write_shard(shard, [*range(1, 256)] * 20)
    data = ["--data", "TokenShards", "--data.path", ".", "--data.vocab_size", "256", "--data.tokenizer", "null"]
    run = start(*data, "--data.seq_len", "32", "--time_budget.limit", "100000 steps")
    run.wait_for_step(4)
    if how == "truncated":
        os.truncate(shards[0], 2000)
    else:
        with shards[0].open("r+b") as file:
            file.write(shards[0].read_bytes()[:1024] + bytes(4000))
    status, seconds = run.end(timeout=75)
    assert seconds < 60
    assert status == 3, run.err
    lines = [line for line in run.err.splitlines() if line.startswith("bytelm: error:")]
    assert any("train.bin" in line for line in lines), run.err
    assert run.record()["status"] == "error"
    if how == "overwritten":  # found by all together
        assert len(lines) == 1
        kept = run.checkpoint()["callbacks"]["TimeBudget"]["steps"]
        assert kept == run.record()["total_steps"] == len(run.events(0, "step")) > 4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_hangs_the_others_end_and_name_it(broken, launcher, rank):
    run = broken(rank, signal.SIGSTOP, launcher)
    pid, other = run.pid(rank), run.pid(1 - rank)
    began = time.monotonic()
    while other in run.alive() and time.monotonic() - began < 75:
        time.sleep(0.1)
    seconds = time.monotonic() - began
    print(f"[the other rank ended after {seconds:.1f} s]")
    with contextlib.suppress(ProcessLookupError):  # torchrun may have done so already
        os.kill(pid, signal.SIGKILL)
    assert seconds < 60, run.err
    assert any(
        f"rank {rank}" in line and f"pid {pid}" in line
        for line in run.err.splitlines()
        if line.startswith("bytelm: error:")
    ), run.err
    run.end(timeout=60)
    if rank == 1:
        assert run.record()["status"] == "error"
        assert "rank 1" in run.record()["reason"]


# Scores, divergence


@pytest.mark.slow
def test_two_ranks_score_as_one_does(start):
    one = start("--trainer.devices", "1", "--trainer.strategy", "auto", "--time_budget.limit", "30 steps").ended_well()
    checkpoint = one.folder / "runs/tiny/version_0/checkpoints/last.ckpt"
    two = start("--ckpt_path", str(checkpoint), subcommand="validate").ended_well()
    alone = start(
        "--ckpt_path", str(checkpoint), "--trainer.devices", "1", "--trainer.strategy", "auto", subcommand="validate"
    ).ended_well()
    (expected,) = alone.events(0, "scores")
    assert 0 < expected["val/bpb"] < 8
    for rank in (0, 1):
        (scores,) = two.events(rank, "scores")
        assert scores["val/bpb"] == pytest.approx(expected["val/bpb"], abs=1e-6)
        assert scores["val/loss"] == pytest.approx(expected["val/loss"], abs=1e-6)


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_loss_of_one_rank_that_becomes_nan_ends_all(start, failing):
    run = start(
        callback("NotANumber", failing=failing, step=5),
        callback("Slow", seconds=[0.05, 0.05]),
        "--time_budget.limit",
        "1000 steps",
    )
    status, _ = run.end(START_SECONDS)
    assert status == 1, run.err
    record = run.record()
    assert record["status"] == "diverged"
    assert "step 5 " in record["reason"]
    assert len(run.events(0, "step")) == len(run.events(1, "step"))
    assert run.err.count("bytelm: error:") == 1, run.err


# Sharded weights

SHARDED = "--trainer.strategy=fsdp"
SHARDED_STEP = "--trainer.strategy=ShardedStep"


@pytest.mark.slow
def test_sharded_ranks_learn_the_same_as_whole_ones(start):
    """Every weight in its own group of the optimizer, with its rate and its decay, though each rank has half of it."""
    options = ("--model.optimizer.weight_decay", "0.5", "--model.optimizer.lr", "0.01", *SAMPLED)
    whole = start("--experiment", "whole", *options).ended_well()
    sharded = start("--experiment", "sharded", SHARDED, *options).ended_well()
    assert sharded.record("sharded")["val_bpb"] == pytest.approx(whole.record("whole")["val_bpb"], abs=1e-4)
    weights = [whole.checkpoint(name)["state_dict"] for name in ("whole", "sharded")]
    assert list(weights[0]) == list(weights[1])
    torch.testing.assert_close(dict(weights[1]), dict(weights[0]), atol=1e-4, rtol=0)
    assert "note: no samples of text: under FSDP no rank has the whole network" in sharded.err
    unigrams = [re.search("unigram.*", run.err)[0] for run in (whole, sharded)]
    assert unigrams[0] == unigrams[1]
    for rank in (0, 1):
        assert sharded.events(rank, "start")[0]["groups"] == whole.events(rank, "start")[0]["groups"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [SHARDED, SHARDED_STEP])
def test_ranks_with_a_share_of_the_state_that_are_cut_resume_as_if_uninterrupted(start, strategy):
    limit = ("--time_budget.limit", "30 steps")
    uncut = start("--experiment", "uncut", strategy, *DROPOUT, *limit).ended_well().checkpoint("uncut")
    run = start("--experiment", "cut", strategy, *DROPOUT, *limit, callback("Slow", seconds=[0.3, 0.3]))
    run.wait_for_step(5)
    send(run, 1, signal.SIGTERM)
    status, seconds = run.end()
    assert (status, seconds < 40) == (143, True), run.err
    steps = run.checkpoint("cut")["callbacks"]["TimeBudget"]["steps"]
    assert f"after step {steps}" in run.record("cut")["reason"]
    start("--experiment", "cut", strategy, *DROPOUT, *limit, "--ckpt_path", "last").ended_well()
    resumed = run.checkpoint("cut")
    assert resumed["callbacks"]["TimeBudget"]["steps"] == 30
    for name, value in uncut["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


# A step divided among ranks


def test_ranks_that_divide_the_step_learn_the_same_as_with_ddp(start, uncut):
    """Also the optimizer state of each parameter is in the checkpoint, whichever rank has it."""
    run = start("--time_budget.limit", "40 steps", *DROPOUT, SHARDED_STEP).ended_well()
    divided = run.checkpoint()
    torch.testing.assert_close(dict(divided["state_dict"]), dict(uncut["state_dict"]), atol=1e-5, rtol=0)
    states, expected = (c["optimizer_states"][0]["state"] for c in (divided, uncut))
    assert list(states) == list(expected)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-3)
    assert run.record()["strategy"] == "ShardedStep"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("ddp", "ShardedStep"), ("ShardedStep", "ddp")])
def test_a_run_continues_from_ddp_with_a_divided_step_and_the_reverse(start, uncut, first, then):
    limit = "--time_budget.limit"
    start(limit, "20 steps", *DROPOUT, "--trainer.strategy", first, "--experiment", "half").ended_well()
    half = "runs/half/version_0/checkpoints/last.ckpt"
    options = (limit, "40 steps", *DROPOUT, "--trainer.strategy", then, "--ckpt_path", half)
    resumed = start(*options, "--experiment", "resumed").ended_well().checkpoint("resumed")
    torch.testing.assert_close(dict(resumed["state_dict"]), dict(uncut["state_dict"]), atol=1e-5, rtol=0)
    states, expected = (c["optimizer_states"][0]["state"] for c in (resumed, uncut))
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-3)
