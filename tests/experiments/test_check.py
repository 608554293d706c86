"""The check reports configs that cannot run, and no config can harm the process that calls it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm.experiments.check import Checker
from scripts.inject_faults import LIMIT, prepare

PROJECT = Path(__file__).resolve().parents[2]
GOOD = ("--config", "tiny.yaml")


@pytest.fixture(scope="module")
def one_checker(tmp_path_factory):
    """One Checker for all tests, as its process takes seconds to start; its folder has corpus.txt and tiny.yaml."""
    folder = tmp_path_factory.mktemp("checks")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch, Checker() as checker:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield checker


@pytest.fixture
def checker(one_checker):
    """A Checker whose checks leave no files behind."""
    yield one_checker
    assert not Path("runs").exists()


def test_a_good_config_comes_back_resolved(checker):
    config, reason = checker.check([*GOOD, "--lr_schedule", "Cosine", "--seed_everything", "7"])
    assert reason == ""
    assert config["model"]["gpt"]["init_args"]["d_model"] == 16
    assert config["time_budget"]["limit"] == f"{LIMIT} steps"
    assert config["lr_schedule"]["class_path"].endswith(".Cosine")
    assert config["seed_everything"] == 7
    assert config["trainer"]["gradient_clip_val"] == 1.0


def test_the_config_of_a_run_which_also_has_the_options_of_its_method_is_accepted(checker):
    Path("run.yaml").write_text(Path("tiny.yaml").read_text() + "\nweights_only: true\nckpt_path: null\n")
    config, reason = checker.check(["--config", "run.yaml"])
    assert reason == ""
    assert "weights_only" not in config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.gpt.n_heads=3",), ["n_heads: 3 cannot be used", "divisors of d_model, which is 16"]),
        (("--model.gpt.d_modell=3",), ["model.gpt.d_modell: unknown key", "did you mean d_model?"]),
        (("--data.path=nowhere.txt",), ["nowhere.txt"]),
        (("--config=nowhere.yaml",), ["nowhere.yaml"]),
        (("--time_budget.limit=3 stops",), ["time_budget.limit", "'3 stops'"]),
        (("--trainer.callbacks+=my_raise.Mine",), ["trainer.callbacks", "RuntimeError: not today"]),
    ],
    ids=str,
)
def test_a_config_that_cannot_run_is_reported_with_the_reason_in_one_line(checker, options, said):
    Path("my_raise.py").write_text("raise RuntimeError('not today')\n")
    config, reason = checker.check([*GOOD, *options])
    assert config is None
    assert [part for part in said if part not in reason] == [], reason
    assert len(reason.splitlines()) == 1
    assert "bytelm: error" not in reason


def test_a_config_that_ends_the_process_ends_neither_the_caller_nor_the_next_check(checker):
    Path("my_exit.py").write_text("import os\n\nos._exit(1)\n")
    assert checker.check([*GOOD, "--trainer.callbacks+=my_exit.Mine"]) == (
        None,
        "the process that checks it died, perhaps because of a lack of memory; lower the sizes in model.gpt",
    )
    config, _ = checker.check(GOOD)
    assert config is not None


def test_an_interrupt_is_for_the_caller(checker):
    checker.check(GOOD)
    (pid,) = checker._pool._processes
    os.kill(pid, signal.SIGINT)  # as a terminal sends it to all processes
    config, _ = checker.check(GOOD)
    assert config is not None
    assert list(checker._pool._processes) == [pid]


CALLER = """
from bytelm.experiments.check import Checker

if __name__ == "__main__":
    with Checker() as checker:
        checker.check(["--config", "nowhere.yaml"])
"""


def test_the_process_that_checks_ends_when_its_caller_is_killed(tmp_path, until, alive):
    (tmp_path / "caller.py").write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        [sys.executable, "caller.py"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as caller:
        pid = until(lambda: next(spawned(caller.pid), None))
        until(lambda: len(os.listdir(f"/proc/{pid}/task")) > 1)  # all of its threads have started
        caller.kill()
    until(lambda: not alive(pid))


def spawned(parent):
    """Returns the processes that multiprocessing has started for this one."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, ppid, *_ = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if ppid == str(parent) and b"spawn_main" in command:
            yield int(status.parent.name)


def test_a_check_that_takes_too_long_is_ended_and_the_next_one_is_made(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    with Checker() as checker:
        config, reason = checker.check(GOOD, seconds=0.01)  # its process has not even started
        assert config is None
        assert reason == "it takes more than 0.01 s to build; lower the sizes in model.gpt"
        assert checker.check(GOOD)[0] is not None
