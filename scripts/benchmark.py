"""Measures the overhead of bytelm over a plain PyTorch loop, side by side.

    BYTELM_DATA=… python scripts/benchmark.py --budget 30s --repeats 5

Runs these contenders in turn, `repeats` times, each in a separate process and for the same time:

* `bytelm`: `python -m bytelm fit` on a config, with TensorBoard and the progress bar on;
* `plain loop`: the same network, batches and optimizer in a plain PyTorch loop, `scripts/plain_loop.py`;
* `challenge script`: the byte-level challenge's winning script, unchanged, if $BYTELM_REFERENCE (or --reference)
  names the folder that contains its harness and the corpus.

Prints medians and ratios. The machine must be otherwise idle, because each contender uses every core.

    python scripts/benchmark.py --config configs/gpt2/124m.yaml --random_tokens [--alone] [-- --config other.yaml …]

The same for shards of random tokens, on GPUs. The options after `--` are added to bytelm's command line and change the
plain loop likewise. The plain loop supports bf16-mixed, accumulation, torch.compile and ddp.

    python scripts/benchmark.py … --scaling -- --trainer.devices 2 --trainer.strategy ddp

Also runs each contender on one device and prints the ratio of tokens per second. A step on N devices has N times the
tokens of a step on one device.

    BYTELM_DATA=… python scripts/benchmark.py --callbacks --budget 30s [-- …]

Trains once and prints the time of each callback's hooks in a step, in microseconds.

    BYTELM_DATA=… python scripts/benchmark.py --startup --config my.yaml --repeats 3 [-- --trainer.devices 2 …]

Starts the config's run `repeats` times and ends it after its first step. Prints the time from the start of the process
to that step by phase: medians, with empty and with filled caches of compiled code if the config compiles.

    BYTELM_DATA=… python scripts/benchmark.py --busy 2 --budget 12s --repeats 3

Trains while no, one and two other processes keep a core busy each. Prints the steps of each run: as bytelm lets threads
wait for each other (bytelm/system/threads.py), with waiting threads that always sleep soon, and by the default of GNU's
OpenMP.

    BYTELM_DATA=… python scripts/benchmark.py --peak --config my.yaml [-- --trainer.precision bf16-mixed …]

Trains a few dozen steps and prints the peak speed of matrix products on this machine, for square matrices and for those
of the network; the share of the peak that training reaches; and the time of a step by part and by operator.

    python scripts/benchmark.py --budget 60s --config a.yaml --config b.yaml --beside 'cd other && python train.py'

Runs each config and another training script in turn, and prints their scores. The command runs in a shell, in the
current folder. It ends by itself after the same training time ({seconds} in it becomes the budget), and prints a line
`val_bpb: 1.23`. Lines such as `num_steps: 136` are shown, too (BESIDE). It must validate on the same text.
"""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.peak import peak
from benchmarks.runs import ROOT, Result, build_cli, run
from benchmarks.startup import measure_startup, startup_report
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from tqdm import tqdm

from bytelm.callbacks import TimeBudget
from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.data.shard_file import write_shard
from bytelm.errors import ConfigError
from bytelm.program import errors_in_one_line
from bytelm.system.threads import SPIN_COUNT
from bytelm.units import Duration, accepted_forms

OF_RUNS = {"budget", "repeats", "reference", "random_tokens", "alone", "scaling"}
USED_BY = {  # those that a mode uses
    "beside": {"budget", "repeats"},
    "callbacks": {"budget", "random_tokens"},
    "peak": {"random_tokens"},
    "startup": {"repeats", "random_tokens"},
    "busy": {"budget", "repeats", "random_tokens"},
}
PLAIN_LOOP = ROOT / "scripts/plain_loop.py"
PLAIN_STRATEGIES = (SingleDeviceStrategy, DDPStrategy)  # supported by the plain loop
ONE_DEVICE = ("--trainer.devices", "1", "--trainer.strategy", "auto")
Contender = tuple[str, int]  # its name and its number of devices
WAITS: dict[str, dict[str, str]] = {
    "bytelm": {},
    "always briefly": {"GOMP_SPINCOUNT": str(SPIN_COUNT)},
    "library's default": {"GOMP_SPINCOUNT": "300000"},  # of GNU's OpenMP
}
KEEP_BUSY = "while True: pass"
HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)

# --beside: lines that another script prints, the keys of a run's record, and the factors between them.
BESIDE = {
    "val_bpb": ("val_bpb", 1.0),
    "num_steps": ("total_steps", 1.0),
    "total_tokens_M": ("tokens_seen", 1e6),
    "training_seconds": ("training_time_secs", 1.0),
    "mfu_percent": ("mfu", 0.01),
    "peak_vram_mb": ("peak_device_memory_mb", 1.0),
}
COLUMNS = {  # of the scores: a record's key, and the format
    "steps": ("total_steps", "{:,.0f}"),
    "tokens": ("tokens_seen", "{:,.0f}"),
    "training time, s": ("training_time_secs", "{:.1f}"),
    "MFU": ("mfu", "{:.1%}"),
    "device memory, MiB": ("peak_device_memory_mb", "{:,.0f}"),
}


def main() -> None:
    with errors_in_one_line():
        options = parse(sys.argv[1:])
    seconds = options.budget.value
    if options.beside is not None:
        print(score_table(run_in_turn(beside(options), options.repeats)))
        return
    (options.config,) = options.config
    if options.random_tokens:
        shards = random_shards(ROOT / "runs" / "random-tokens")
        options.overrides += ["--data.path", str(shards), "--data.tokenizer", "null"]
    if options.peak:
        print(peak(options.config, options.overrides))
        return
    if options.startup:
        print(startup_report(measure_startup(options.config, options.repeats, options.overrides)))
        return
    if options.callbacks:
        print(time_callbacks(options.config, seconds, options.overrides))
        return
    if options.busy is not None:
        print(busy_table(run_on_busy_cores(options)))
        return
    trainer = build_cli(options.config, *options.overrides).trainer
    devices = trainer.num_devices
    if options.scaling and devices == 1:
        sys.exit("bytelm: error: scaling: the config has one device; accepted: several, such as -- --trainer.devices 2")
    plain = isinstance(trainer.strategy, PLAIN_STRATEGIES)
    print(table(run_in_turn(contenders(options, devices, plain), options.repeats), seconds))
    if not plain:
        print(f"no plain loop: it supports one device and ddp, not {type(trainer.strategy).__name__}")


def parse(args: Sequence[str]) -> Namespace:
    """Returns the options, with those after `--` as `overrides`.

    Raises:
        ConfigError, UsageError: One of them is invalid, or has no effect.
    """
    description = f"{str(__doc__).splitlines()[0]} Options after `--` change the config."
    parser = CommandParser(prog=Path(__file__).name, passes_on=True, description=description)
    default = ROOT / "configs/autoresearch/32-rope-d80-ff256.yaml"
    parser.add_argument("--config", action="append", help=f"several with --beside; default {default.name}")
    parser.add_argument("--budget", type=Duration, default=Duration(30, "seconds"), help="time of each run")
    parser.add_argument("--repeats", type=PositiveInt, default=5, help="number of runs of each contender")
    parser.add_argument("--reference", help="folder of the challenge script; default: $BYTELM_REFERENCE")
    parser.add_argument("--random_tokens", action="store_true", help="train on generated shards of random tokens")
    parser.add_argument("--alone", action="store_true", help="leave out the plain loop")
    parser.add_argument("--scaling", action="store_true", help="also run on one device, and print the ratio")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--beside", metavar="COMMAND", help="compare scores with another training script instead")
    modes.add_argument("--callbacks", action="store_true", help="measure the callbacks' time instead")
    modes.add_argument("--peak", action="store_true", help="measure the share of the machine's peak instead")
    modes.add_argument("--startup", action="store_true", help="measure the time before the first step instead")
    modes.add_argument("--busy", type=PositiveInt, metavar="N", help="train beside 0 to N busy processes instead")
    at = [*args, "--"].index("--")
    options = parser.parse_args(args[:at])
    if options.budget.unit != "seconds":
        raise ConfigError("budget", str(options.budget), accepted_forms("seconds"))
    for mode, used in USED_BY.items():
        for option in (OF_RUNS - used) if getattr(options, mode) else ():
            if (value := getattr(options, option)) != parser.get_default(option):
                raise ConfigError(option, str(value), f"it has no effect with --{mode}; accepted: without it")
    if len(options.config or ()) > 1 and options.beside is None:
        reason = "several are compared only with --beside; to combine configs, give the others after --"
        raise ConfigError("config", " ".join(options.config), reason)
    options.config = [Path(config) for config in options.config or [default]]
    reference = options.reference or os.environ.get("BYTELM_REFERENCE")
    options.reference = None if reference is None else Path(reference)
    options.overrides = list(args[at + 1 :])
    return options


def contenders(options: Namespace, devices: int, plain: bool) -> dict[Contender, Callable[[], Result]]:
    """The runs to measure.

    Args:
        options: The command's options.
        devices: Number of devices in the config.
        plain: Whether the plain loop supports them.
    """
    config, seconds = options.config, options.budget.value
    runs: dict[Contender, Callable[[], Result]] = {}
    overrides_of = {devices: options.overrides}
    if options.scaling:
        overrides_of[1] = [*options.overrides, *ONE_DEVICE]
    for count, overrides in overrides_of.items():
        runs["bytelm", count] = partial(run_bytelm, config, seconds, overrides)
        if plain and not options.alone:
            runs["plain loop", count] = partial(run_plain_loop, config, seconds, overrides, count)
    if options.reference is not None:
        runs["challenge script", devices] = partial(run_challenge_script, options.reference, seconds)
    return runs


def run_in_turn(runs: dict[Contender, Callable[[], Result]], repeats: int) -> dict[Contender, list[Result]]:
    results: dict[Contender, list[Result]] = {contender: [] for contender in runs}
    with tqdm(total=repeats * len(runs), desc="runs") as bar:
        for repeat in range(repeats):
            # The order alternates: a machine that warms up or slows down then favours no contender.
            for (name, devices), run in list(runs.items())[:: -1 if repeat % 2 else 1]:
                bar.set_postfix_str(f"{name}, devices: {devices}")
                results[name, devices].append(run())
                bar.update()
    return results


def run_on_busy_cores(options: Namespace) -> dict[tuple[str, int], list[int]]:
    """Trains beside busy processes; returns the steps of each run, by the way of waiting and their number."""
    steps: dict[tuple[str, int], list[int]] = {(name, n): [] for name in WAITS for n in range(options.busy + 1)}
    with tqdm(total=options.repeats * len(steps), desc="runs") as bar:
        for repeat in range(options.repeats):
            for beside in range(options.busy + 1):
                for name, environment in list(WAITS.items())[:: -1 if repeat % 2 else 1]:
                    with busy_processes(beside):
                        result = run_bytelm(options.config, options.budget.value, options.overrides, environment)
                    steps[name, beside].append(result["total_steps"])
                    bar.update()
    return steps


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Context in which other processes keep a core busy each."""
    busy = [subprocess.Popen([sys.executable, "-c", KEEP_BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def busy_table(steps: dict[tuple[str, int], list[int]]) -> str:
    """Returns Markdown: steps by the number of busy processes, and their share of those without any."""
    lines = ["| threads wait | busy processes | steps, median (each) | share of idle |", "| --- | --- | --- | --- |"]
    for (name, beside), own in steps.items():
        idle, each = statistics.median(steps[name, 0]), ", ".join(map(str, own))
        median = statistics.median(own)
        lines.append(f"| {name} | {beside} | {median:g} ({each}) | {median / idle:.0%} |")
    return "\n".join(lines)


def run_bytelm(
    config: Path, seconds: float, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Result:
    limit = ["--time_budget.limit", f"{seconds}s"]
    command = [sys.executable, "-m", "bytelm", "fit", "--config", str(config), *limit, *overrides]
    folder = next(
        line for line in run(command, {**os.environ, **(environment or {})}).splitlines() if line.startswith("run: ")
    )
    return json.loads(Path(ROOT, folder.removeprefix("run: "), "record.json").read_text())


def run_plain_loop(config: Path, seconds: float, overrides: Sequence[str] = (), devices: int = 1) -> Result:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)] if devices > 1 else []
    command = [sys.executable, *launch, str(PLAIN_LOOP), f"{seconds}s", "--config", str(config), *overrides]
    # torchrun would give each rank one thread; Lightning gives it its share of the processor.
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // devices))}
    return json.loads(run(command, {**threads, **os.environ}).splitlines()[-1])


def run_challenge_script(reference: Path, seconds: float) -> Result:
    script = reference / "harness" / "run_challenge_script.py"
    return json.loads(run([sys.executable, str(script), "--budget", str(seconds)]))


def beside(options: Namespace) -> dict[Contender, Callable[[], Result]]:
    """The runs of --beside: each config, and the other script."""
    seconds = options.budget.value
    runs = {(config.stem, 1): partial(run_bytelm, config, seconds, options.overrides) for config in options.config}
    return {**runs, (options.beside, 1): partial(run_beside, options.beside, seconds)}


def run_beside(command: str, seconds: float) -> Result:
    """Runs another training script; returns what it printed, under the keys of a run's record."""
    line = command.replace("{seconds}", f"{seconds:g}")
    finished = subprocess.run(line, shell=True, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"--beside: {line} ended with status {finished.returncode}:\n{finished.stderr}")
    printed = dict(re.findall(r"^(\w+):[ \t]+([-+.\de]+)[ \t]*$", finished.stdout, re.MULTILINE))
    if "val_bpb" not in printed:
        sys.exit(f"--beside: {line} printed no line such as `val_bpb: 1.23`")
    return {key: factor * float(printed[name]) for name, (key, factor) in BESIDE.items() if name in printed}


def random_shards(folder: Path, tokens: int = 20_000_000) -> Path:
    """Makes a folder with training and validation shards of random tokens of GPT-2's vocabulary."""
    for split, count in {"train": tokens, "val": tokens // 10}.items():
        path = folder / f"random_{split}_000000.bin"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_shard(path, np.random.default_rng(0).integers(50_257, size=count, dtype=np.uint16))
    return folder


def time_callbacks(config: Path, seconds: float, overrides: Sequence[str] = ()) -> str:
    """Returns Markdown: the mean time of each callback's hooks in a step, in microseconds."""
    cli = build_cli(config, *overrides, "--time_budget.limit", f"{seconds}s", "--experiment", "callbacks")
    taken: dict[str, float] = {}

    def timed(name: str, hook: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            hook(*args, **kwargs)
            taken[name] = taken.get(name, 0.0) + time.perf_counter() - start

        return call

    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for hook in HOOKS_OF_A_STEP:
            setattr(callback, hook, timed(type(callback).__name__, getattr(callback, hook)))
    cli.trainer.fit(cli.model, cli.datamodule)
    steps = TimeBudget.of(cli.trainer).steps
    rows = [f"| {name} | {1e6 * seconds / steps:.1f} |" for name, seconds in taken.items()]
    total = f"| all | {1e6 * sum(taken.values()) / steps:.1f} |"
    return "\n".join([f"{steps} steps", "", "| callback | microseconds a step |", "| --- | --- |", *rows, total])


def table(results: dict[Contender, list[Result]], seconds: float) -> str:
    """Returns Markdown: each contender's speed, bytelm's ratio to it, and bytelm's deviation from the budget."""
    speeds = {of: [r["total_steps"] / r["training_time_secs"] for r in runs] for of, runs in results.items()}
    tokens = {of: [r["tokens_per_sec"] for r in runs if "tokens_per_sec" in r] for of, runs in results.items()}
    lines = [
        "| contender | devices | steps/s, median (min to max) | bytelm / it, median of pairs | tokens/s | MFU "
        "| all devices / one, median of pairs | device memory, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, devices), own in speeds.items():
        of, one = (name, devices), (name, 1)
        memory = [r["peak_device_memory_mb"] / 1024 for r in results[of] if "peak_device_memory_mb" in r]
        mfu = [r["mfu"] for r in results[of] if r.get("mfu")]
        cells = [
            name,
            str(devices),
            f"{statistics.median(own):.3f} ({min(own):.3f} to {max(own):.3f})",
            f"{median_ratio(speeds['bytelm', devices], own):.4f}",
            f"{statistics.median(tokens[of]):,.0f}" if tokens[of] else "",
            f"{statistics.median(mfu):.1%}" if mfu else "",
            f"{median_ratio(tokens[of], tokens[one]):.3f}" if devices > 1 and one in tokens else "",
            f"{max(memory):.1f}" if memory else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ours = results["bytelm", max(devices for _, devices in results)]
    errors = [r["training_time_secs"] - seconds for r in ours]
    step = statistics.median(r["training_time_secs"] / r["total_steps"] for r in ours)
    startup = [r["startup_time_secs"] for r in ours]
    lines += [
        "",
        f"from the start of the process to the first training step: median {statistics.median(startup):.2f} s "
        f"({min(startup):.2f} to {max(startup):.2f})",
        f"training time minus the budget: {min(errors):+.3f} to {max(errors):+.3f} s; a step takes {step:.3f} s",
    ]
    return "\n".join(lines)


def score_table(results: dict[Contender, list[Result]]) -> str:
    """Returns Markdown: each contender's score and the medians of what else is known of its runs."""
    lines = [f"| contender | val_bpb of each run | mean | {' | '.join(COLUMNS)} |", "| --- " * (3 + len(COLUMNS)) + "|"]
    for (name, _), runs in results.items():
        scores = [run["val_bpb"] for run in runs]
        cells = [f"`{name}`", ", ".join(f"{score:.4f}" for score in scores), f"{statistics.mean(scores):.4f}"]
        for key, shape in COLUMNS.values():
            values = [run[key] for run in runs if run.get(key) is not None]
            cells.append(shape.format(statistics.median(values)) if values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median_ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


if __name__ == "__main__":
    main()
