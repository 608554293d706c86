"""Programs that are forks of a process with their imports: separate processes, as subprocess starts them."""

import json
import os
import signal
from pathlib import Path

import pytest

from bytelm.experiments import warm_start
from bytelm.experiments.job import Job
from bytelm.experiments.warm_start import WarmProcess
from bytelm.system.process import LIFELINE, Lifeline

pytestmark = pytest.mark.skipif(not warm_start.is_possible(), reason="for Linux")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts `bytelm` with arguments; returns the process and the file of its output."""
    monkeypatch.chdir(tmp_path)
    kept = []

    def start(*args):
        lifeline = Lifeline()
        with open("log.txt", "ab") as log:
            process = WarmProcess(args, log.fileno(), lifeline.descriptor, LIFELINE)
        lifeline.started()
        kept.append((process, lifeline))
        return process, lifeline

    yield start
    for process, _ in kept:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


def test_its_output_and_exit_status_are_those_of_the_command(start):
    process, _ = start("--version")
    assert process.wait() == 0
    assert process.poll() == process.returncode == 0
    assert Path("log.txt").read_text().startswith("bytelm ")
    other, _ = start("no-such-command")
    assert other.wait() == 2
    assert "unknown command 'no-such-command'" in Path("log.txt").read_text()
    assert other.pid != process.pid


def test_it_has_its_own_session_the_environment_of_now_and_no_import_to_make(start, monkeypatch):
    monkeypatch.setenv("BYTELM_WARM_TEST", "now")
    Path("part.py").write_text(
        "import os, sys\n"
        "print('torch' in sys.modules, os.getsid(0) == os.getpid(), os.environ['BYTELM_WARM_TEST'], flush=True)\n"
        "os._exit(7)\n"
    )
    Path("a.yaml").write_text("model: {gpt: part.Mine}\n")
    process, _ = start("fit", "--config", "a.yaml")
    assert process.wait() == 7
    assert "True True now" in Path("log.txt").read_text()


def test_it_ends_when_its_caller_ends(folder, start, until):
    process, lifeline = start("fit", "--config", "tiny.yaml", "--time_budget.limit", "600s")
    until(lambda: Path("log.txt").exists() and "budget  600s" in Path("log.txt").read_text())
    assert process.poll() is None
    lifeline.cut()
    assert process.wait() == 128 + signal.SIGTERM


def test_a_kill_is_seen_and_the_next_program_starts(start):
    process, _ = start("fit", "--config", "nowhere.yaml")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start("--version")[0].wait() == 0


def test_a_warm_job_gives_the_run_that_this_process_gives(run):
    """Same losses, and a record of its own."""
    run("--experiment", "here")
    here = json.loads(Path("runs/here/version_0/record.json").read_text())
    with Job(["--config", "tiny.yaml"], "s/warm", is_warm=True) as job:
        outcome = job.wait(0.05)
    assert outcome.status == "completed", job.tail()
    for key in ("val_bpb", "train_loss", "total_steps"):
        assert outcome.record[key] == here[key]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--trainer.devices", "2", "--trainer.strategy", "ddp"), ("--model.compile", "true")],
    ids=["two ranks", "compiled"],
)
def test_a_warm_run_is_that_of_a_new_process(folder, options):
    """Also if the program starts further processes: the second rank, or those that compile."""
    records = []
    for is_warm in (True, False):
        with Job(["--config", "tiny.yaml", *options], f"s/{is_warm}", is_warm=is_warm) as job:
            outcome = job.wait(0.05)
        assert outcome.status == "completed", job.tail()
        records.append({key: outcome.record[key] for key in ("val_bpb", "train_loss", "total_steps", "world_size")})
    assert records[0] == records[1]
