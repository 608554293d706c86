"""Faults of real processes: kills, signals, divergence, full disks, too little memory.

Tested here:

- a run that SIGKILL ends at any moment resumes as if it had not been ended (scripts/inject_faults.py kills the runs);
- SIGTERM and SIGINT end a run within seconds, with a checkpoint of its last step, in any phase;
- a loss that becomes NaN or infinite ends the run with the step's number and keeps the last good weights, or restores
  them;
- a full disk or too little memory ends the run with one line and damages no earlier checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bytelm.callbacks import divergence
from bytelm.data.bytes import ByteData
from bytelm.language_model import LanguageModel
from bytelm.program import main

resource = pytest.importorskip("resource", reason="limits and signals of POSIX systems")

from scripts.inject_faults import ANY, inject, start, wait  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]
ENDLESS = ("--time_budget.limit", "100000 steps", "--last_checkpoint.every", "2 steps")
LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


def callback(name, **options):
    """Options that add one of this file's callbacks to a run, as one of the user's own."""
    return f"--trainer.callbacks+={json.dumps({'class_path': f'test_faults.{name}', 'init_args': options})}"


def record(folder="runs/tiny/version_0"):
    return json.loads(Path(folder, "record.json").read_text())


def error_line(stderr):
    """The line that states why a run ended."""
    assert "Traceback" not in stderr, stderr
    (line,) = [line for line in stderr.splitlines() if "bytelm: error: " in line]
    return line.partition("bytelm: error: ")[2]


def assert_whole(path=LAST):
    """A checkpoint can be loaded, its weights are finite, and nothing half-written is beside it; returns its step."""
    checkpoint = torch.load(path, weights_only=True)
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    assert list(Path(path).parents[1].rglob("*.part")) == []
    return checkpoint["callbacks"]["TimeBudget"]["steps"]


# SIGKILL


def test_a_run_killed_at_any_moment_resumes_as_if_it_had_not_been(tmp_path):
    kills, problems = inject(tmp_path, kills=4, seed=0)
    assert problems == []
    assert len(kills) == 4
    assert all(kill.resumed and kill.identical for kill in kills)
    # Kills that all fall into the start-up, where nothing can be lost, would prove nothing.
    # Whether one of so few kills loses steps is chance; test_fifty_kills_leave_no_trace checks that some do.
    assert all(kill.trained for kill in kills if kill.moment == ANY)


@pytest.mark.slow
def test_fifty_kills_leave_no_trace():
    script = [sys.executable, PROJECT / "scripts" / "inject_faults.py", "--kills", "50", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = {row[0]: list(map(int, row[1:])) for row in table_rows(ended.stdout)}
    made, trained, resumed, identical, lost = figures["total"]
    assert made == resumed == identical == 50
    assert lost == 2
    assert trained >= 30
    made, trained, *_, lost = figures[ANY]
    assert made == trained >= 10
    assert lost > 0


def table_rows(text):
    """Cells of a Markdown table, less its head."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]


# SIGTERM and SIGINT


class Reached(Callback):
    """Makes the file `reached` at the n-th call of a hook, and stays there for a while.

    Args:
        hook: Its name; `saving`: before a checkpoint gets its name; `loading`: before the first batch;
            `step`: in a training step, those of the warm-up included.
        n: At which call.
        seconds: How long it stays, if no signal ends it.
    """

    def __init__(self, hook: str, n: int, seconds: float = 0.3) -> None:
        super().__init__()
        self.left = n
        self.seconds = seconds
        if hook == "saving":
            save = torch.save
            torch.save = lambda *args: (save(*args), self.reached())
        elif hook == "loading":
            load = ByteData.train_dataloader
            ByteData.train_dataloader = lambda data: (self.reached(), load(data))[1]
        elif hook == "step":
            step = LanguageModel.training_step
            LanguageModel.training_step = lambda model, *batch: (self.reached(), step(model, *batch))[1]
        else:
            setattr(self, hook, self.reached)

    def reached(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            Path("reached").touch()
            end = time.monotonic() + self.seconds
            while time.monotonic() < end:
                time.sleep(0.01)


@pytest.fixture
def interrupted(folder):
    """Starts an endless run, sends it signals at the n-th call of a hook, and returns exit status and stderr."""

    def interrupted(hook, n, *signals, pause=0.0, seconds=0.3):
        (folder / "reached").unlink(missing_ok=True)
        reached = callback("Reached", hook=hook, n=n, seconds=seconds)
        options = ("--trainer.val_check_interval", "5", *ENDLESS)
        process = start(folder, "fit", "--config", "tiny.yaml", reached, *options)
        began = time.monotonic()
        while not (folder / "reached").exists():
            assert process.exitcode is None, Path("stderr").read_text()
            assert time.monotonic() - began < 60
            time.sleep(0.01)
        for i, signum in enumerate(signals):
            time.sleep(pause if i else 0.0)
            assert process.exitcode is None
            os.kill(process.pid, signum)
        return wait(process, seconds=10), Path("stderr").read_text()

    return interrupted


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("hook", "n"), [("on_train_batch_start", 4), ("on_validation_batch_start", 3), ("saving", 2)], ids=str
)
def test_a_signal_ends_a_run_with_all_that_it_has_done(hook, n, signum, interrupted):
    status, stderr = interrupted(hook, n, signum)
    assert status == 128 + signum
    step = assert_whole()
    line = error_line(stderr)
    assert line == (
        f"interrupted by {signum.name} after step {step}, which is in {LAST}; --ckpt_path last resumes from there"
    )
    assert record()["status"] == "interrupted"
    assert record()["reason"] == line
    assert record()["total_steps"] == step >= 4


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hook", ["step", "on_train_start"])
def test_a_signal_while_the_network_warms_up_ends_the_run_at_once(hook, signum, interrupted):
    status, stderr = interrupted(hook, 1, signum, seconds=30)
    assert status == 128 + signum
    assert error_line(stderr) == f"interrupted by {signum.name}"
    assert record()["status"] == "interrupted"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "loading"])
def test_a_signal_before_training_ends_the_run(hook, signum, interrupted):
    status, stderr = interrupted(hook, 1, signum, seconds=30)
    assert "Traceback" not in stderr, stderr
    assert status in (128 + signum, -signal.SIGTERM)  # a death by SIGTERM needs no words: nothing is there to be kept
    if status > 0:
        assert error_line(stderr).startswith("interrupted")


def test_a_second_interrupt_ends_a_step_that_does_not_end(interrupted):
    began = time.monotonic()
    status, stderr = interrupted("on_before_backward", 4, signal.SIGINT, signal.SIGINT, pause=1.2, seconds=60)
    assert status == 130
    assert error_line(stderr) == "interrupted by SIGINT"
    assert time.monotonic() - began < 40
    assert record()["status"] == "interrupted"
    assert assert_whole() <= 4


def test_a_signal_that_comes_twice_at_once_is_one(interrupted):
    status, stderr = interrupted("on_train_batch_start", 4, signal.SIGINT, signal.SIGINT, pause=0.05)
    assert status == 130
    assert "after step" in error_line(stderr)


@pytest.mark.parametrize(("signum", "accepted"), [(signal.SIGTERM, (-15, 143)), (signal.SIGINT, (-2, 130))])
def test_a_signal_while_python_starts_ends_it(signum, accepted, folder):
    command = [sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml", *ENDLESS]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)  # torch alone takes longer to import
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode in accepted
    assert "Traceback" not in stderr, stderr
    assert not Path("runs").exists()


# Divergence


class Spoil(Callback):
    """Replaces the training loss of some steps, or the weights after a step.

    Args:
        first: Step, counted from 1.
        last: Step.
        value: The new value of the loss, or of a weight.
        of: `loss`, or `weights` after the first step.
        batch: Which of the batches that are accumulated into a step.
    """

    def __init__(self, first: int, last: int, value: str = "nan", of: str = "loss", batch: int = 0) -> None:
        super().__init__()
        self.first, self.last, self.value, self.of, self.batch = first, last, float(value), of, batch
        self.spoiling = False

    def on_train_start(self, trainer, pl_module):
        pl_module.loss.register_forward_hook(lambda loss, args, out: out * self.value if self.spoiling else None)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, part = divmod(batch_idx, trainer.accumulate_grad_batches)
        self.spoiling = self.of == "loss" and self.first <= step + 1 <= self.last and part == self.batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.of == "weights" and trainer.global_step == self.first:
            with torch.no_grad():
                pl_module.gpt.embedding.weight.view(-1)[0] = self.value


@pytest.fixture
def fails(folder, capsys):
    """Runs main(), which must end with an error; returns its status and the line that says why."""

    def fails(*options):
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", "tiny.yaml", "--time_budget.limit", "12 steps", *options])
        return ended.value.code, error_line(capsys.readouterr().err)

    return fails


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("every", ["1 steps", "5 steps"])
def test_a_loss_that_is_no_number_ends_the_run_by_its_step(value, every, fails):
    status, line = fails(callback("Spoil", first=9, last=12, value=value), "--last_checkpoint.every", every)
    assert status == 1
    assert line == f"the training loss of step 9 is NaN or infinite; the last good checkpoint is {LAST}"
    assert record()["status"] == "diverged"
    assert record()["reason"] == line
    assert record()["checkpoint"] == LAST
    assert assert_whole() == {"1 steps": 8, "5 steps": 5}[every]


@pytest.mark.parametrize("first", [9, 12])
def test_the_losses_of_a_device_that_runs_behind_are_checked_a_reading_later_and_all_of_them_at_the_end(
    first, fails, monkeypatch
):
    monkeypatch.setattr(divergence, "runs_behind", lambda device: True)
    status, line = fails(callback("Spoil", first=first, last=first), "--last_checkpoint.every", "5 steps")
    assert status == 1
    assert line == f"the training loss of step {first} is NaN or infinite; the last good checkpoint is {LAST}"
    assert record()["total_steps"] == min(first + 1, 12)


@pytest.mark.parametrize("every", ["1 steps", "100 steps"])
def test_a_loss_that_is_no_number_in_the_first_step_leaves_no_checkpoint(every, fails):
    status, line = fails(callback("Spoil", first=1, last=12), "--last_checkpoint.every", every)
    assert (status, line) == (1, "the training loss of step 1 is NaN or infinite")
    assert record()["checkpoint"] is None
    assert not Path(LAST).exists()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_not_saved(value, fails):
    status, line = fails(
        callback("Spoil", first=6, last=6, value=value, of="weights"), "--last_checkpoint.every=1 steps"
    )
    assert status == 1
    assert line.startswith("the training loss of step 7 is NaN or infinite")
    assert record()["status"] == "diverged"
    assert assert_whole() in (5, 6)  # 6 where it was written before the weight was spoilt


def test_weights_that_are_no_numbers_after_the_last_step_do_not_pass_for_a_completed_run(fails):
    spoil = callback("Spoil", first=12, last=12, of="weights")
    status, line = fails(spoil, "--last_checkpoint.every", "5 steps")
    assert status == 1
    assert line.startswith("the validation loss after step 12 is nan")
    assert record()["status"] == "diverged"
    assert assert_whole() == 10


def test_a_learning_rate_beyond_all_bounds_ends_the_run(fails):
    status, line = fails("--model.optimizer.lr", "1e30", "--last_checkpoint.every", "1 steps")
    assert status == 1
    assert line.startswith(("the training loss of step 2 is NaN or infinite", "the training loss of step 3 is NaN"))
    assert record()["status"] == "diverged"
    if Path(LAST).exists():
        assert_whole()


@pytest.mark.parametrize("batch", [0, 1])
def test_a_loss_that_is_no_number_in_any_of_a_steps_batches_is_that_steps(batch, fails):
    spoil = callback("Spoil", first=9, last=12, batch=batch)
    status, line = fails(spoil, "--trainer.accumulate_grad_batches", "2", "--last_checkpoint.every", "1 steps")
    assert (status, line) == (
        1,
        f"the training loss of step 9 is NaN or infinite; the last good checkpoint is {LAST}",
    )
    assert assert_whole() == 8


def test_divergence_ends_a_run_that_keeps_no_checkpoints(fails):
    status, line = fails(callback("Spoil", first=9, last=12), "--trainer.enable_checkpointing", "false")
    assert (status, line) == (1, "the training loss of step 9 is NaN or infinite")
    assert record()["status"] == "diverged"
    status, line = fails("--trainer.enable_checkpointing", "false", "--divergence.on_divergence", "rewind")
    assert status == 2
    assert "divergence.on_divergence" in line


def rates(folder="runs/tiny/version_0"):
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    return {event.step + 1: event.value for event in events.Scalars("lr/hidden")}


REWIND = ("--divergence.on_divergence", "rewind", "--divergence.max_rewinds", "2")


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_a_rewind_resumes_from_the_last_good_weights_at_half_the_rate(accumulate, folder, capsys):
    options = ("--time_budget.limit", "12 steps", "--last_checkpoint.every", "2 steps", *REWIND)
    spoil = callback("Spoil", first=6, last=6)
    main(["fit", "--config", "tiny.yaml", *options, "--trainer.accumulate_grad_batches", accumulate, spoil])
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "back to the weights" in line]
    assert "the training loss of step 6 is NaN or infinite: back to the weights of step 4" in line
    assert "learning rates times 0.5" in line
    assert record()["status"] == "completed"
    assert record()["total_steps"] == 12
    assert record()["val_bpb"] < 7.5
    assert assert_whole() == 12
    assert rates() == pytest.approx({step: 3e-3 if step <= 6 else 1.5e-3 for step in range(1, 13)})


def test_a_loss_that_stays_bad_ends_the_run_after_so_many_rewinds(folder, capsys):
    options = ("--time_budget.limit", "12 steps", "--last_checkpoint.every", "2 steps", *REWIND)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "tiny.yaml", *options, callback("Spoil", first=5, last=12)])
    assert ended.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr.count("back to the weights of step 4") == 2
    assert error_line(stderr).startswith("the training loss of step 7 is NaN or infinite, after 2 rewinds")
    assert record()["status"] == "diverged"
    assert assert_whole() == 6  # with the weights of step 4, which the run had gone back to
    assert rates()[7] == pytest.approx(3e-3 / 4)


def test_a_run_that_was_rewound_and_cut_continues_at_the_lower_rate(folder):
    options = ("--config", "tiny.yaml", "--last_checkpoint.every", "2 steps", *REWIND)
    main(["fit", *options, "--time_budget.limit", "8 steps", callback("Spoil", first=6, last=6)])
    main(["fit", *options, "--time_budget.limit", "12 steps", "--ckpt_path", "last"])
    assert rates() == pytest.approx({step: 3e-3 if step <= 6 else 1.5e-3 for step in range(1, 13)})


# Full disks


class Full(Callback):
    """Fills the disk at a step: files cannot grow, or a file takes all free space.

    Args:
        step: After which no more is written.
        file_size: Bytes that a file may have from then on.
        filler: File that takes all of the space.
    """

    def __init__(self, step: int, file_size: int = 0, filler: str = "") -> None:
        super().__init__()
        self.step, self.file_size, self.filler = step, file_size, filler

    def on_train_batch_start(self, trainer, *args, **kwargs):
        if trainer.global_step != self.step:
            return
        if self.file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, resource.RLIM_INFINITY))
        if self.filler:
            free = os.statvfs(Path(self.filler).parent)
            with open(self.filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize)


@pytest.fixture
def ended(folder):
    """Runs a process to its end; returns the exit status and the line with the reason."""

    def ended(*options, before=None):
        status = wait(start(folder, "fit", "--config", "tiny.yaml", *options, before=before))
        return status, error_line(Path("stderr").read_text())

    return ended


@pytest.fixture
def small_disk(folder):
    """Mounts a disk of this size as runs/."""
    runs = folder / "runs"
    runs.mkdir()

    def small_disk(size):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", runs], capture_output=True)
        if mounted.returncode:
            pytest.skip("may not mount")

    yield small_disk
    subprocess.run(["umount", "-l", runs], capture_output=True)


def test_files_that_may_not_grow_end_a_checkpoint_and_keep_the_one_before(ended):
    full = callback("Full", step=5, file_size=30_000)
    status, line = ended(full, "--time_budget.limit", "9 steps", "--last_checkpoint.every", "3 steps")
    assert status == 5
    assert line == f"{LAST}: the checkpoint could not be written (File too large); an earlier one is unchanged"
    assert assert_whole() == 3
    assert record()["status"] == "error"
    assert record()["reason"] == line


def test_files_that_may_not_grow_end_a_log(ended):
    full = callback("Full", step=5, file_size=6_000)
    status, line = ended(full, *ENDLESS[:2], "--last_checkpoint.every", "4 steps", "--trainer.log_every_n_steps=1")
    assert status == 5
    assert "runs/tiny/version_0" in line
    assert assert_whole() == 4
    assert record()["status"] == "error"


def test_a_disk_too_small_for_two_checkpoints_keeps_the_first(ended, small_disk, run):
    run("--experiment", "sized")  # in the folder, not on the small disk
    size = Path("runs/sized/version_0/checkpoints/last.ckpt").stat().st_size
    small_disk(int(1.8 * size))
    status, line = ended("--time_budget.limit", "9 steps", "--last_checkpoint.every", "3 steps")
    assert status == 5
    assert line.startswith(f"{LAST}: the checkpoint could not be written (No space left on device)")
    assert assert_whole() == 3


@pytest.mark.parametrize(("every", "kept"), [("4 steps", 4), ("1000 steps", None)], ids=["checkpoint", "log"])
def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_checkpoint_before(every, kept, ended, small_disk):
    small_disk("1m")
    full = callback("Full", step=6, filler="runs/filler")
    status, line = ended(full, *ENDLESS[:2], "--last_checkpoint.every", every, "--trainer.log_every_n_steps", "1")
    assert status == 5
    assert "No space left on device" in line
    assert "runs/tiny/version_0" in line
    if kept:
        assert assert_whole() == kept


# Too little memory


def limit_memory(extra):
    """Limits the further memory of this process to this number of bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize(
    ("options", "before"),
    [
        (("--data.batch_size", "100000000000"), None),
        (("--data.batch_size", "16384"), partial(limit_memory, 300 * 2**20)),
        (("--model.gpt.d_ff", "100000000000"), None),
    ],
    ids=["batch beyond all memory", "step beyond the limit", "network beyond all memory"],
)
def test_too_little_memory_is_reported_with_the_option_to_lower(options, before, ended):
    status, line = ended(*options, before=before)
    assert status == 6
    assert line.startswith("out of memory; lower data.batch_size")
