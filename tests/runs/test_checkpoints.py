"""The values of `--ckpt_path`, and their effects.

Tested here:

- damaged files, files that are no checkpoint, and checkpoints of another model, optimizer or corpus are rejected in one
  line, with the exit status of the kind of error, before runs/ is changed; code in a checkpoint does not run;
- `last` and `best` name the newest run's, and a folder that another process uses is not changed;
- if writing a checkpoint fails or is interrupted, the previous one is unchanged;
- all optimizers' states load without unpickling code, and training resumes with them exactly.
"""

import ctypes
import io
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from thinned import thinned

from bytelm.errors import CheckpointError, StorageError
from bytelm.program import main
from bytelm.runs.checkpoints import read, write

pytest.importorskip("fcntl", reason="locks and signals of POSIX systems")

from scripts.inject_faults import forkserver, start, unequal, wait, what_counts

LAST = Path("runs/tiny/version_0/checkpoints/last.ckpt")
ON = ("--time_budget.limit", "8 steps")  # the run of 4 steps resumes


def contents(folder="runs"):
    """All files below a folder, with their times and sizes."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(folder).rglob("*")}


@pytest.fixture
def rejects(folder, capsys):
    """Runs main() on a checkpoint that must be rejected before anything is done; returns the line that says why."""

    def rejects(ckpt_path, *options, subcommand="fit", status=4):
        before = contents()
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([subcommand, "--config", "tiny.yaml", "--ckpt_path", str(ckpt_path), *options])
        captured = capsys.readouterr()
        assert ended.value.code == status, captured.err
        assert contents() == before
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line.removeprefix("bytelm: error: ")

    return rejects


# No checkpoint, or no whole one


def test_a_checkpoint_that_was_cut_short_is_rejected(trained, rejects):
    whole = LAST.read_bytes()
    cut = Path("cut.ckpt")
    for length in [*range(0, 100, 7), *range(100, len(whole), len(whole) // 150), *range(len(whole) - 30, len(whole))]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"ckpt_path: 'cut\.ckpt' is damaged or not a checkpoint"):
            read(cut)
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        assert "'cut.ckpt' is damaged or not a checkpoint" in rejects(cut, *ON)


def test_a_last_checkpoint_that_was_cut_short_is_rejected_by_its_path(trained, rejects):
    os.truncate(LAST, LAST.stat().st_size // 2)
    assert f"'{LAST}' is damaged or not a checkpoint" in rejects("last", *ON)


def test_a_flipped_bit_is_found_or_does_no_harm(trained):
    good = read(LAST, map_location="cpu")
    whole = LAST.read_bytes()
    flipped = Path("flipped.ckpt")
    rng = random.Random(0)
    missed = []
    for position in sorted(rng.sample(range(len(whole)), 150)):
        flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            checkpoint = read(flipped, map_location="cpu", check=True)
        except CheckpointError:
            continue
        if next(unequal(good, checkpoint), None):
            missed.append(position)
    assert missed == []


@pytest.mark.parametrize("subcommand", thinned(["fit", "validate"], 1))
def test_files_that_are_no_checkpoint_are_rejected(subcommand, folder, rejects):
    Path("empty.ckpt").touch()
    Path("text.ckpt").write_text("weights: none\n")
    Path("zip.ckpt").write_bytes(b"PK\x05\x06" + bytes(18))  # an archive of no files
    Path("folder.ckpt").mkdir()
    torch.save([1, 2, 3], "list.ckpt")
    torch.save({"state_dict": 3}, "dict.ckpt")
    torch.save(torch.ones(3), "tensor.ckpt")
    for path in sorted(Path().glob("*.ckpt") if subcommand == "fit" else Path().glob("[td]*.ckpt")):
        line = rejects(path, subcommand=subcommand)
        assert f"{str(path)!r} " in line
        assert "could run code" not in line
    assert "'missing.ckpt' cannot be read: No such file or directory" in rejects("missing.ckpt", subcommand=subcommand)
    assert not Path("runs").exists()


def bind_root():
    """Removes root's right to read any file."""
    header, no_capabilities = struct.pack("Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(header, no_capabilities) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="root's powers are taken from it in the way of Linux")
def test_a_checkpoint_that_may_not_be_read_is_rejected(trained):
    LAST.chmod(0)
    before = contents()
    process = start(Path.cwd(), "fit", "--config", "tiny.yaml", "--ckpt_path", str(LAST), *ON, before=bind_root)
    status = wait(process)
    line = f"bytelm: error: ckpt_path: '{LAST}' cannot be read: Permission denied\n"
    assert (status, Path("stderr").read_text()) == (4, line)
    assert contents() == before


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return open, ("has-run", "w")


def test_code_in_a_checkpoint_does_not_run(trained, rejects):
    checkpoint = read(LAST, map_location="cpu")
    Path("pickle.ckpt").write_bytes(pickle.dumps(Code()))
    torch.save(Code(), "bare.ckpt")
    torch.save({**checkpoint, "state_dict": Code()}, "weights.ckpt")
    torch.save({**checkpoint, "callbacks": {"Resume": Code()}}, "callbacks.ckpt")
    torch.save({**checkpoint, "optimizer_states": [Code()]}, "old-format.ckpt", _use_new_zipfile_serialization=False)
    for path in sorted(Path().glob("*.ckpt")):
        for subcommand in ("fit", "validate", "predict") if path == Path("weights.ckpt") else ("fit",):
            line = rejects(path, subcommand=subcommand)
            unsafe = f"{str(path)!r} contains more than tensors and plain values" in line
            assert unsafe or path in (Path("pickle.ckpt"), Path("old-format.ckpt")), line
        assert not Path("has-run").exists()
    torch.load("weights.ckpt", weights_only=False)
    assert Path("has-run").exists()  # the code is real


@pytest.mark.skipif(sys.platform != "linux", reason="devices of Linux")
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_device_is_no_checkpoint(subcommand, folder, rejects):
    line = rejects("/dev/zero", subcommand=subcommand)
    assert line == "ckpt_path: '/dev/zero' is damaged or not a checkpoint (it is not a regular file)"


def test_a_last_checkpoint_of_weights_alone_is_rejected(trained, rejects):
    torch.save({"state_dict": read(LAST, map_location="cpu")["state_dict"]}, LAST)
    assert rejects("last", *ON).startswith(f"ckpt_path: '{LAST}' ")


def replaced(value, keys, new):
    """A copy of nested values with another one in one place."""
    if not keys:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[keys[0]] = replaced(value[keys[0]], keys[1:], new)
    return copy if isinstance(value, dict) else type(value)(copy)


STATE = ("optimizer_states", 0)
HOSTILE = [
    (("callbacks",), []),
    (("callbacks", "TimeBudget"), torch.ones(3)),
    (("callbacks", "TimeBudget", "steps"), torch.tensor(4)),
    (("callbacks", "TimeBudget", "steps"), -4),
    (("callbacks", "TimeBudget", "training_seconds"), float("nan")),
    (("callbacks", "TimeBudget", "step_seconds"), ["fast"]),
    (("callbacks", "Divergence", "rewinds"), 0.5),
    (("callbacks", "Resume", "random_states", 0, "torch"), torch.ones(3)),
    (("callbacks", "Resume", "random_states", 0, "python"), (3, (1, 2), None)),
    (("callbacks", "RunRecord", "train_loss"), torch.ones(2)),
    (("loops", "fit_loop"), None),
    (("loops", "fit_loop", "epoch_progress", "total", "ready"), "one"),
    (("loops", "fit_loop", "state_dict", "combined_loader"), torch.ones(3)),
    (("global_step",), 10**300),
    (("epoch",), "first"),
    (("pytorch-lightning_version",), "new"),
    (("bytelm_version",), torch.ones(2)),
    (("Bytes", "position"), "start"),
    (("Bytes", "position"), -1),
    (("Bytes", "corpus"), None),
    (("config", "model"), [1]),
    (("config", "data", "class_path"), 3),
    (("hyper_parameters",), torch.ones(2)),
    (("state_dict", "gpt.norm.bias"), 1.0),
    (("state_dict", "gpt.norm.bias"), torch.zeros(16, dtype=torch.complex64)),
    (STATE, []),
    ((*STATE, "param_groups"), {}),
    ((*STATE, "param_groups", 0, "params"), [0]),
    ((*STATE, "param_groups", 0, "lr"), "high"),
    ((*STATE, "param_groups", 0, "betas"), (0.9, 1.5)),
    ((*STATE, "param_groups", 0, "amsgrad"), "yes"),
    ((*STATE, "state", 0, "exp_avg"), None),
    ((*STATE, "state", 0, "exp_avg"), torch.ones(5)),
    ((*STATE, "state", 0, "step"), "first"),
]


@pytest.mark.parametrize(
    "hostile",
    [
        HOSTILE[::8],
        pytest.param([values for number, values in enumerate(HOSTILE) if number % 8], marks=pytest.mark.slow),
    ],
    ids=["some", "others"],
)
def test_values_of_the_wrong_kind_are_rejected_by_their_place_before_anything_is_made(trained, rejects, hostile):
    checkpoint = read(LAST, map_location="cpu")
    for keys, new in hostile:
        torch.save(replaced(checkpoint, keys, new), "hostile.ckpt")
        if keys == ("hyper_parameters",):
            continue  # nobody looks at them
        line = rejects("hostile.ckpt", *ON)
        named = any(str(key) in line for key in keys)
        assert named or "of another model" in line or "of other parameter groups" in line, (keys, line)


def test_a_state_that_a_callback_of_the_users_cannot_restore_is_the_checkpoints_error(run, folder, capsys):
    Path("my_counter.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Counter(Callback):\n"
        "    def state_dict(self):\n        return {'count': 1}\n\n"
        "    def load_state_dict(self, state_dict):\n        self.count = state_dict['count'] + 1\n"
    )
    options = ("--trainer.callbacks+=my_counter.Counter",)
    run(*options)
    checkpoint = read(LAST, map_location="cpu")
    torch.save(replaced(checkpoint, ("callbacks", "Counter", "count"), "one"), "other.ckpt")
    capsys.readouterr()
    for subcommand in ("fit", "validate"):
        with pytest.raises(SystemExit) as ended:
            main([subcommand, "--config", "tiny.yaml", "--ckpt_path", "other.ckpt", *options, *ON])
        assert ended.value.code == 4
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("bytelm: error: ckpt_path: 'other.ckpt' cannot be restored: TypeError: ")


# Of something else


@pytest.mark.parametrize(
    ("options", "told"),
    thinned(
        [
            (("--model.gpt.d_model", "32"), ["model.gpt.d_model: 16 in the checkpoint, 32 now"]),
            (("--model.gpt.n_layers", "2"), ["model.gpt.n_layers: 1 in the checkpoint, 2 now"]),
            (("--model.gpt.position", "Learned"), ["model.gpt.position: Rotary in the checkpoint, Learned now"]),
            (
                ("--model.gpt.d_ff", "64", "--model.gpt.feedforward", "SwiGLU"),
                [
                    "model.gpt.d_ff: 32 in the checkpoint, 64 now",
                    "model.gpt.feedforward: GELU in the checkpoint, SwiGLU now",
                ],
            ),
        ],
        4,
        several=True,
    ),
    ids=["d_model", "n_layers", "position", "feedforward"],
)
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_another_models_checkpoint_is_rejected_by_the_keys_that_differ(options, told, subcommand, trained, rejects):
    for ckpt_path in (LAST, "last"):
        line = rejects(ckpt_path, *options, subcommand=subcommand)
        assert line.startswith(f"ckpt_path: '{LAST}' is of another model; model.gpt.")
        assert all(difference in line for difference in told)


@pytest.mark.parametrize(("theirs", "ours"), [("true", "false"), ("false", "true")])
def test_tied_and_untied_embeddings_are_two_models_though_of_the_same_shapes(theirs, ours, run, rejects):
    run("--model.gpt.tie_embeddings", theirs)
    told = f"model.gpt.tie_embeddings: {theirs.title()} in the checkpoint, {ours.title()} now"
    assert told in rejects(LAST, "--model.gpt.tie_embeddings", ours, *ON)
    if ours == "true":  # of two matrices one would be lost; one that is used twice scores the same
        assert told in rejects(LAST, "--model.gpt.tie_embeddings", ours, subcommand="validate")


def test_a_checkpoint_of_the_same_shapes_is_scored_with_a_note(trained, run, capsys):
    run("--ckpt_path", str(LAST), "--model.gpt.attention", "Explicit", subcommand="validate")
    assert "model.gpt.attention: SDPA in the checkpoint, Explicit now" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", thinned(["Adam", "Lion", "MuonAdamW", "SGD"], 2))
def test_another_optimizers_checkpoint_is_rejected_but_scored(optimizer, trained, run, rejects):
    line = rejects(LAST, "--model.optimizer", optimizer, *ON)
    assert line.startswith(f"ckpt_path: '{LAST}'; model.optimizer: ")
    theirs, ours = line.partition("model.optimizer: ")[2].split(" in the checkpoint, ")
    assert theirs.endswith(".AdamW")
    assert ours.endswith(f".{optimizer} now")
    run("--ckpt_path", str(LAST), "--model.optimizer", optimizer, subcommand="validate")


def test_weights_alone_are_scored_but_not_trained_on(run, rejects, capsys):
    trainer = run().trainer
    score = capsys.readouterr().out.splitlines()[0]
    trainer.save_checkpoint("lightning.ckpt", weights_only=True)
    torch.save({"state_dict": read(LAST, map_location="cpu")["state_dict"]}, "plain.ckpt")
    for path in ("lightning.ckpt", "plain.ckpt"):
        assert rejects(path) == f"ckpt_path: '{path}' contains weights but no optimizer state to resume with"
        run("--ckpt_path", path, subcommand="validate")
        assert capsys.readouterr().out.splitlines()[0] == score


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_checkpoint_of_another_lightning_module_is_rejected(subcommand, folder, rejects):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, enable_checkpointing=False, **quiet)
    trainer.fit(BoringModel())
    trainer.save_checkpoint("boring.ckpt")
    line = rejects("boring.ckpt", subcommand=subcommand)
    assert line.startswith("ckpt_path: 'boring.ckpt' is of another model; ")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "key",
    ["pytorch-lightning_version", "callbacks", "loops", "global_step", "epoch", "lr_schedulers", "Bytes", "config"],
)
def test_an_incomplete_checkpoint_is_rejected_or_loaded_without_the_missing_part(key, trained, run, rejects):
    checkpoint = read(LAST, map_location="cpu")
    del checkpoint[key]
    torch.save(checkpoint, "lacking.ckpt")
    try:
        run("--ckpt_path", "lacking.ckpt", "--experiment", "lacking", *ON)
    except Exception:
        shutil.rmtree("runs/lacking", ignore_errors=True)
        assert "lacking.ckpt" in rejects("lacking.ckpt", *ON)


def test_a_changed_corpus_is_rejected_by_both_hashes(run, rejects):
    before = run().datamodule.corpus.sha256
    with open("corpus.txt", "a") as corpus:
        corpus.write("more\n")
    after = run("--experiment", "changed").datamodule.corpus.sha256
    for ckpt_path in (LAST, "last"):
        line = rejects(ckpt_path, *ON, status=3)
        assert "corpus.txt" in line
        assert before[:12] in line
        assert after[:12] in line


# By name


def test_last_begins_at_the_beginning_where_there_is_no_run_yet(run, capsys):
    run("--ckpt_path", "last")
    captured = capsys.readouterr()
    assert "bytelm: note: runs/tiny has no run yet; starting a new run" in captured.err
    assert read(LAST)["callbacks"]["TimeBudget"]["steps"] == 4


@pytest.mark.parametrize(("name", "subcommand"), [("best", "fit"), ("last", "validate"), ("best", "predict")])
def test_a_name_without_a_run_is_rejected(name, subcommand, folder, rejects):
    line = rejects(name, subcommand=subcommand)
    assert line == f"ckpt_path: no {name}.ckpt in runs/tiny; accepted: a path, too"
    assert not Path("runs").exists()


@pytest.mark.parametrize("subcommand", thinned(["validate", "test"], 1))
def test_last_and_best_are_those_of_the_newest_run(subcommand, run, capsys):
    run("--model.optimizer.lr", "1e-2")
    run("--time_budget.limit", "20 steps", "--trainer.val_check_interval", "5")
    (Path("runs/tiny/version_7") / "checkpoints").mkdir(parents=True)  # a run that has no checkpoint yet
    for name in ("last", "best"):
        scores = []
        for ckpt_path in (name, f"runs/tiny/version_1/checkpoints/{name}.ckpt"):
            capsys.readouterr()
            before = contents()
            run("--ckpt_path", ckpt_path, subcommand=subcommand)
            assert contents() == before
            scores.append(capsys.readouterr().out)
        assert scores[0] == scores[1] != ""


def test_a_run_that_another_process_is_at_work_on_is_left_alone(run, rejects):
    process = start(
        Path.cwd(),
        "fit",
        "--config",
        "tiny.yaml",
        "--time_budget.limit=100000 steps",
        "--last_checkpoint.every=1 steps",
    )
    while not LAST.exists():
        assert process.exitcode is None, Path("stderr").read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # at work, but nothing changes
    while any(") T " not in thread.read_text() for thread in Path(f"/proc/{process.pid}/task").glob("*/stat")):
        time.sleep(0.01)  # its threads stop one after the other
    assert rejects("last", status=5) == "runs/tiny/version_0: another process works on this run"
    process.kill()
    process.join()
    steps = read(LAST)["callbacks"]["TimeBudget"]["steps"]
    run("--ckpt_path", "last", "--time_budget.limit", f"{steps + 2} steps")
    assert read(LAST)["callbacks"]["TimeBudget"]["steps"] == steps + 2


# Writing


class Halt(BaseException):
    """Like KeyboardInterrupt, not caught by `except Exception`."""


def half_save(error, checkpoint, file):
    """torch.save, interrupted by an error or, without one, by SIGKILL."""
    whole = io.BytesIO()
    ORIGINAL_SAVE(checkpoint, whole)
    half = whole.getvalue()[: whole.tell() // 2]
    if isinstance(file, str | os.PathLike):
        Path(file).write_bytes(half)
    else:
        file.write(half)
        file.flush()
    if error is None:
        os.kill(os.getpid(), signal.SIGKILL)
    raise error


ORIGINAL_SAVE = torch.save


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), StorageError),
        (RuntimeError("enforce fail"), StorageError),
        (Halt(), Halt),
    ],
    ids=["OSError", "RuntimeError", "BaseException"],
)
def test_a_checkpoint_whose_writing_fails_leaves_the_one_before(error, raised, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write({"state_dict": {"w": torch.ones(1000)}}, path)
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", partial(half_save, error))
    with pytest.raises(raised) as failed:
        write({"state_dict": {"w": torch.zeros(1000)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    if raised is StorageError:
        assert str(path) in str(failed.value)
        assert str(error.args[-1]) in str(failed.value)


def save_and_die(path):
    torch.save = partial(half_save, None)
    write({"state_dict": {"w": torch.zeros(1000)}}, path)


def test_a_process_killed_while_it_writes_leaves_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    write({"state_dict": {"w": torch.ones(1000)}}, path)
    before = path.read_bytes()
    process = forkserver.Process(target=save_and_die, args=(path,))
    process.start()
    assert wait(process) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2  # and half of a file, which the next one replaces
    write({"state_dict": {"w": torch.zeros(1000)}}, path)
    assert torch.equal(read(path, map_location="cpu")["state_dict"]["w"], torch.zeros(1000))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "options", thinned([("AdamW",), ("Adam",), ("Lion",), ("MuonAdamW",), ("SGD", "momentum", "0.9")], 2), ids=str
)
def test_every_optimizer_resumes_from_its_checkpoint_bit_for_bit(options, run):
    optimizer = ["--model.optimizer", options[0]]
    if options[1:]:
        optimizer += [f"--model.optimizer.{options[1]}", options[2]]
    run("--experiment", "uncut", *optimizer, *ON)
    run(*optimizer)
    assert read(LAST, map_location="cpu")["optimizer_states"][0]["state"]
    run(*optimizer, *ON, "--ckpt_path", "last")
    uncut = Path("runs/uncut/version_0/checkpoints/last.ckpt")
    assert list(unequal(what_counts(uncut), what_counts(LAST))) == []
