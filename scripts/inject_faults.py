"""Kills a training run repeatedly, and checks that the resumed run equals an uninterrupted one.

    python scripts/inject_faults.py --kills 50 --seed 0

A tiny experiment runs once without interruption. It then runs again and again. SIGKILL ends each process at a moment: a
random time in or after start-up, or a selected moment (halfway through writing a checkpoint, before renaming it, in a
step, in a validation, in a log record, …). The next process resumes with `--ckpt_path last`. The script checks that

* every process resumes at the step of the last.ckpt of the process before, at most `EVERY` steps back;
* the finished run has the weights, optimizer, random states and data position of the uninterrupted run, bit for bit;
* TensorBoard shows the curves of the uninterrupted run: each step once, in order, with the same values;
* no file is half-written, and no temporary file remains.

Prints a table. Ends with status 1 if a check fails.
"""

import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.program import errors_in_one_line
from bytelm.runs.checkpoints import Contents, read
from bytelm.runs.folder import newest_checkpoint

LIMIT = 60  # steps of the run
EVERY = 2  # steps between two checkpoints
VALIDATE = 10  # steps between two validations, each of 8 batches
CONFIG = f"""
model:
  gpt: {{d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 32, dropout: 0.1}}
  optimizer: {{class_path: AdamW, init_args: {{lr: 3e-3}}}}
data:
  class_path: Bytes
  init_args: {{path: corpus.txt, batch_size: 4, seq_len: 32, eval_bytes: 1024, order: shuffled}}
trainer: {{accelerator: cpu, devices: 1, gradient_clip_val: 1.0, log_every_n_steps: 1, val_check_interval: {VALIDATE}}}
time_budget: {{limit: {LIMIT} steps}}
samples: {{max_new_tokens: 4}}
lr_schedule: {{class_path: Cosine, init_args: {{warmup: 10%}}}}
last_checkpoint: {{every: {EVERY} steps}}
"""
CURVES = ("train/loss", "grad/norm", "lr/hidden", "time_budget/progress", "val/loss", "val/bpb")
TIMED = ("training_seconds", "run_seconds", "step_seconds", "throughput/")  # differ between any two runs
PATIENCE = 60.0  # longest time of a process, in seconds
GIVE_UP = 20  # number of problems that ends the script
DIARY = "diary"

# Each moment, and how often it occurs at least in the given number of remaining steps.
STARTING = "any, in start-up"
ANY = "any, from the first step on"
BY_THE_CLOCK = (STARTING, ANY)
MOMENTS: dict[str, Callable[[int], int]] = {
    STARTING: lambda left: 1,
    ANY: lambda left: left,
    "on_before_backward": lambda left: left,
    "on_before_optimizer_step": lambda left: left,
    "on_train_batch_end": lambda left: left,
    "on_validation_batch_start": lambda left: -(-left // VALIDATE) * 8,
    "on_train_end": lambda left: 1,
    "half of last.ckpt": lambda left: max(left // EVERY, 1),
    "last.ckpt unnamed": lambda left: max(left // EVERY, 1),
    "last.ckpt named": lambda left: max(left // EVERY, 1),
    "half of best.ckpt": lambda left: -(-left // VALIDATE),
    "best.ckpt unnamed": lambda left: -(-left // VALIDATE),
    "half of config.yaml": lambda left: 1,
    "half of record.json": lambda left: 1,
    "record.json unnamed": lambda left: 1,
    "half of a log record": lambda left: left * len(CURVES),
}


# In the process that is killed


class Fault(Callback):
    """Kills its process at the n-th occurrence of a moment, and writes a diary of steps.

    Args:
        moment: Name of a hook, or another key of MOMENTS.
        n: The occurrence.
    """

    def __init__(self, moment: str = "", n: int = 1) -> None:
        super().__init__()
        self.left = n
        words = moment.split() or [""]
        if moment.startswith("on_"):
            patch(self, moment, self.hook)
        elif moment == "half of a log record":
            patch(RecordWriter, "write", self.write_record)
        elif words[0] == "half":
            patch(os, "fsync", self.fsync, words[-1])
        elif words[-1] in ("unnamed", "named"):
            patch(os, "replace", self.replace, *words)

    def kill(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, own: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        self.kill()

    def write_record(self, write: Callable[..., None], writer: Any, data: bytes) -> None:
        if self.left == 1:
            writer._writer.write(data[: len(data) // 2])  # also less than its header
            writer._writer.flush()
        self.kill()
        write(writer, data)

    def fsync(self, fsync: Callable[[int], None], name: str, file: int) -> None:
        """Files are flushed after they are written; this truncates one to half of its size."""
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.name == f".{name}.part":
            if self.left == 1:
                os.truncate(path, path.stat().st_size // 2)
            self.kill()
        fsync(file)

    def replace(self, replace: Callable[..., None], name: str, when: str, source: Any, target: Any) -> None:
        if Path(target).name != name:
            return replace(source, target)
        if when == "unnamed":
            self.kill()
        replace(source, target)
        if when == "named":
            self.kill()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("start", trainer)

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self.note("step", trainer)

    def note(self, what: str, trainer: Any) -> None:
        with open(DIARY, "a") as diary:  # closed each time: the line then survives the process
            diary.write(f"{what} {trainer.global_step}\n")


def patch(owner: Any, name: str, wrapper: Callable[..., None], *args: Any) -> None:
    original = getattr(owner, name)
    setattr(owner, name, lambda *rest, **options: wrapper(original, *args, *rest, **options))


# Processes

forkserver = multiprocessing.get_context("forkserver")  # imports torch once; each process is a fork of it
forkserver.set_forkserver_preload(["bytelm.cli", "inject_faults", "scripts.inject_faults"])


def start(folder: Path, *options: str, before: Callable[[], object] | None = None) -> ForkServerProcess:
    """Starts `python -m bytelm` in a folder, with its output in the files `stdout` and `stderr`.

    Args:
        folder: Working folder.
        options: Subcommand, config, …
        before: Called first in the new process, for example to set limits.
    """
    process = forkserver.Process(target=_bytelm, args=(folder, options, before), daemon=True)
    process.start()
    return process


def _bytelm(folder: Path, options: tuple[str, ...], before: Callable[[], object] | None) -> None:
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    sys.path[:0] = [str(folder), str(Path(__file__).parent)]
    sys.argv = ["bytelm"]  # LightningCLI warns if there are both sys.argv and args
    torch.set_num_threads(1)  # sums of several threads may differ in the last bit
    tqdm.set_lock(threading.RLock())  # its default lock is shared by processes, and would outlive a killed process
    if before is not None:
        before()
    from bytelm.program import main

    main(list(options))


def wait(process: ForkServerProcess, seconds: float = PATIENCE) -> int | None:
    """Exit status of a process, negative if a signal ended it; None if it did not end in time."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


# The experiment


@dataclass
class Kill:
    """A kill and its result."""

    moment: str
    trained: bool = False  # whether training had begun
    lost: int = 0  # steps to be repeated
    resumed: bool = False
    identical: bool = False


@dataclass
class Chain:
    """One run of the experiment, over several processes."""

    folder: Path
    name: str
    startup: float  # seconds from the start of the uninterrupted run to its first step
    seconds: float  # seconds from there to its end
    kills: list[Kill] = field(default_factory=list)
    saved: int = 0  # the step of last.ckpt
    over: bool = False  # completed, or failed
    problems: list[str] = field(default_factory=list)

    def run(self, moment: str | None, rng: random.Random) -> None:
        """Runs one process and kills it at the moment; None: runs it to its end."""
        diary = self.folder / DIARY
        diary.write_text("")
        options = ["--trainer.callbacks+=inject_faults.Fault"]
        if moment is not None and moment not in BY_THE_CLOCK:
            n = rng.randint(1, self.most(moment))
            options += [f"--trainer.callbacks.moment={moment}", f"--trainer.callbacks.n={n}"]
        process = start(self.folder, *fit(self.name), "--ckpt_path", "last", *options)
        if moment == STARTING:
            process.join(rng.uniform(0, self.startup))
            process.kill()
        elif moment == ANY:
            # From the first step, not from the start: a resumed run has few steps and a full start-up.
            while process.exitcode is None and not diary.stat().st_size:
                time.sleep(0.001)
            process.join(rng.uniform(0, self.seconds * self.most(moment) / LIMIT))
            process.kill()
        status = wait(process)
        where = f"{self.name}, resumed at step {self.saved}" + (f", to be killed at: {moment}" if moment else "")
        steps = [line.split() for line in diary.read_text().splitlines()]
        if steps:
            if steps[0] != ["start", str(self.saved)]:
                self.problems.append(f"{where}: its first step was {steps[0][1]}")
            for kill in self.kills:
                kill.resumed = True
        if status == -signal.SIGKILL and moment is not None:
            finished = int(steps[-1][1]) if steps else self.saved
            saved = saved_step(self.folder, self.name)
            self.kills.append(Kill(moment, trained=bool(steps), lost=finished - saved))
            if not self.saved <= saved <= finished <= saved + EVERY:
                self.problems.append(f"{where}: {finished} steps were done and {saved} kept, after {self.saved}")
            self.saved = saved
        elif status != 0 or moment not in (None, *BY_THE_CLOCK):
            error = (self.folder / "stderr").read_text()[-2000:]
            self.problems.append(f"{where}: ended with status {status}\n{error}")
        self.over = status == 0 or bool(self.problems)

    def most(self, moment: str) -> int:
        return MOMENTS[moment](LIMIT - self.saved)

    def finish(self, uncut: str) -> None:
        """Compares the finished run with the uninterrupted one."""
        if not self.problems:
            self.problems += [f"{self.name}: {what}" for what in differences(self.folder, uncut, self.name)]
        for kill in self.kills:
            kill.identical = not self.problems


def fit(name: str) -> tuple[str, ...]:
    return ("fit", "--config", "tiny.yaml", "--experiment", name)


def prepare(folder: Path) -> None:
    """Writes config and corpus into a folder."""
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n"]
    rng = random.Random(0)
    (folder / "corpus.txt").write_text(" ".join(rng.choice(words) for _ in range(4000)))
    (folder / "tiny.yaml").write_text(CONFIG)


def saved_step(folder: Path, name: str) -> int:
    checkpoint = newest_checkpoint(name, root=str(folder / "runs"))
    return Contents(read(checkpoint), checkpoint).steps if checkpoint else 0


def inject(folder: Path, kills: int, seed: int) -> tuple[list[Kill], list[str]]:
    """Kills processes, over as many runs as needed.

    Returns:
        The kills, and the problems that were found.
    """
    prepare(folder)
    rng = random.Random(seed)
    if (status := wait(start(folder, *fit("uncut")))) != 0:
        return [], [f"the uncut run ended with status {status}\n{(folder / 'stderr').read_text()}"]
    record = json.loads((folder / "runs/uncut/version_0/record.json").read_text())
    startup = record["startup_time_secs"]
    seconds = record["total_time_secs"] - startup
    made: list[Kill] = []
    problems: list[str] = []
    moments = cycle(rng)
    moment: str | None = next(moments)
    chains = itertools.count()  # not the kills: a run may complete before it is killed
    with tqdm(total=kills, unit="kill") as bar:
        while len(made) < kills and len(problems) < GIVE_UP:
            chain = Chain(folder, f"chain-{next(chains)}", startup, seconds)
            while moment is not None and chain.most(moment) and not chain.over:
                chain.run(moment, rng)
                bar.set_postfix_str(moment, refresh=False)
                bar.update(len(made) + len(chain.kills) - bar.n)
                moment = next(moments) if bar.n < kills else None
            if not chain.over:
                chain.run(None, rng)
            chain.finish("uncut")
            made += chain.kills
            problems += chain.problems
    return made, problems


def cycle(rng: random.Random) -> Iterator[str]:
    """Repeats all moments in random order; every other moment is a random time."""
    clock = itertools.cycle((ANY, ANY, STARTING))
    while True:
        chosen = [moment for moment in MOMENTS if moment not in BY_THE_CLOCK]
        rng.shuffle(chosen)
        for moment in chosen:
            yield from (next(clock), moment)


# Results of a run


def differences(folder: Path, uncut: str, name: str) -> Iterator[str]:
    """Differences between a finished run and the uninterrupted one, and half-written files."""
    for path in (folder / "runs" / name).rglob("*"):
        try:
            READERS.get(path.suffix, str)(path)
        except Exception as error:  # half a file can make its reader raise anything
            yield f"{path} cannot be read: {error}"
    one, two = (newest_checkpoint(n, root=str(folder / "runs")) for n in (uncut, name))
    if one is None or two is None:
        yield f"no last.ckpt in {name}"
        return
    yield from unequal(what_counts(one), what_counts(two))
    one, two = one.parent.parent, two.parent.parent
    yield from (f"{path} is left over" for path in two.rglob(".*.part"))
    for tag, points in curves(one).items():
        if (other := curves(two)[tag]) != points:
            yield f"{tag} is {other}\ninstead of {points}"
    ours, theirs = (json.loads((path / "record.json").read_text()) for path in (one, two))
    for key in ("status", "val_bpb", "val_loss", "train_loss", "total_steps", "tokens_seen"):
        if ours[key] != theirs[key]:
            yield f"{key} in the record is {theirs[key]} instead of {ours[key]}"


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": lambda path: yaml.safe_load(path.read_text())["model"],
    ".ckpt": lambda path: torch.load(path, weights_only=True)["state_dict"],
}


def what_counts(path: Path) -> Any:
    """A checkpoint without times, names of folders, and Lightning's counters (which Resume sets from the budget)."""
    names = ("loops", "epoch", "config", "BestCheckpoint", "ModelCheckpoint", *TIMED)
    return without(names, torch.load(path, weights_only=True))


def without(names: tuple[str, ...], value: Any) -> Any:
    """A nested value without the keys that begin with one of these names."""
    if not isinstance(value, dict):
        return value
    return {key: without(names, inner) for key, inner in value.items() if not str(key).startswith(names)}


def unequal(one: Any, two: Any, where: str = "last.ckpt") -> Iterator[str]:
    """The places where two nested values are not bit-identical."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for key in one:
            yield from unequal(one[key], two[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple) and type(one) is type(two) and len(one) == len(two):
        for i, (x, y) in enumerate(zip(one, two, strict=True)):
            yield from unequal(x, y, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dtype != two.dtype or not torch.equal(one, two):
            yield f"{where} differs"
    elif type(one) is not type(two) or one != two:
        yield f"{where} is {two!r} instead of {one!r}"


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run in TensorBoard: (step, value) by tag."""
    logging.getLogger("tensorboard").setLevel(
        logging.ERROR
    )  # it warns of steps that a killed run logged before it was resumed
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    shown = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] if tag in shown else [] for tag in CURVES}


def table(kills: list[Kill]) -> str:
    """Returns Markdown: the kills at each kind of moment, and their results."""
    lines = ["| killed at | kills | in training | resumed | identical | steps lost, at most |", "| --- " * 6 + "|"]
    for moment in [*MOMENTS, None]:
        rows = [kill for kill in kills if moment in (kill.moment, None)]
        if rows:
            counts = [sum(getattr(kill, what) for kill in rows) for what in ("trained", "resumed", "identical")]
            figures = (len(rows), *counts, max(kill.lost for kill in rows))
            lines.append(f"| {moment or 'total'} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def main() -> None:
    parser = CommandParser(prog=Path(__file__).name, description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=PositiveInt, default=50, help="number of processes that are killed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        kills, problems = inject(Path(folder), options.kills, options.seed)
    print(table(kills))
    for problem in problems:
        print(f"inject_faults: {problem}", file=sys.stderr)
    sys.exit(1 if problems or not all(kill.resumed and kill.identical for kill in kills) else 0)


if __name__ == "__main__":
    main()
