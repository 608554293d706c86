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

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import profile
from torch.utils.benchmark import Timer
from tqdm import tqdm

from bytelm.callbacks import TimeBudget
from bytelm.callbacks.warm_up import wait_for_device
from bytelm.cli import BytelmCLI, build
from bytelm.data.shard_file import write_shard
from bytelm.system.threads import SPIN_COUNT
from bytelm.units import Duration

ROOT = Path(__file__).resolve().parent.parent
PLAIN_LOOP = ROOT / "scripts/plain_loop.py"
STARTUP_PROBE = ROOT / "scripts/startup_probe.py"
# Environment variables with the folders of compiled code: of Inductor, of Triton, and of the kernels of
# the extra `hopper`.
CACHES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "QUACK_CACHE_DIR",
    "CUTE_DSL_CACHE_DIR",
)
SHORT_PHASE = 0.05  # seconds; shorter ones are added up
COMPILERS_PHASES = 8  # the longest of them are printed
PLAIN_STRATEGIES = (SingleDeviceStrategy, DDPStrategy)  # supported by the plain loop
ONE_DEVICE = ("--trainer.devices", "1", "--trainer.strategy", "auto")
Contender = tuple[str, int]  # its name and its number of devices
Result = dict[str, Any]
LIBRARY_DEFAULT = {"GOMP_SPINCOUNT": "300000"}  # of GNU's OpenMP
WAITS: dict[str, dict[str, str]] = {
    "bytelm": {},
    "always briefly": {"GOMP_SPINCOUNT": str(SPIN_COUNT)},
    "library's default": LIBRARY_DEFAULT,
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

# --peak: steps of the run, in this order.
WARM_UP_STEPS = 10
MEASURED_STEPS = 40  # twice: for the speed, and for the parts
PROFILED_STEPS = 5
DEVICE_WINDOW = 5  # steps between two readings of the clock, if a device runs behind the program
TOP_OPERATORS = 12

# Actions of Lightning's profiler, by the end of their names. Other actions belong to the action around them.
PART_OF_ACTION = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer",
}
REST = "rest"
PARTS = ("data", "forward", "backward", "optimizer", REST)

Shape = tuple[int, int, int]  # tokens, inputs and outputs of a linear layer
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SQUARES = (512, 2048)
DEVICE_SQUARES = (*SQUARES, 8192)
PRODUCTS = {"forward": "x @ w.T", "input gradient": "g @ w", "weight gradient": "g.T @ x"}
PRODUCT_SECONDS = 0.2  # time for which a product is repeated
PATIENCE = 5.0  # longest time of one product, in seconds


def main() -> None:
    options = parse()
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
        sys.exit("--scaling: the config has one device; it must have several, for example -- --trainer.devices 2")
    plain = isinstance(trainer.strategy, PLAIN_STRATEGIES)
    print(table(run_in_turn(contenders(options, devices, plain), options.repeats), seconds))
    if not plain:
        print(f"no plain loop: it supports one device and ddp, not {type(trainer.strategy).__name__}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    default = ROOT / "configs/autoresearch/32-rope-d80-ff256.yaml"
    parser.add_argument("--config", type=Path, action="append", help=f"several with --beside; default {default.name}")
    parser.add_argument("--beside", metavar="COMMAND", help="compare scores with another training script")
    parser.add_argument("--budget", type=Duration.parse, default=Duration.parse("30s"), help="time of each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference", type=Path, default=os.environ.get("BYTELM_REFERENCE"))
    parser.add_argument("--callbacks", action="store_true", help="measure the callbacks' time instead")
    parser.add_argument("--peak", action="store_true", help="measure the share of the machine's peak instead")
    parser.add_argument("--startup", action="store_true", help="measure the time before the first step instead")
    parser.add_argument("--busy", type=int, metavar="N", help="train beside 0 to N busy processes instead")
    parser.add_argument("--random_tokens", action="store_true", help="train on generated shards of random tokens")
    parser.add_argument("--alone", action="store_true", help="leave out the plain loop")
    parser.add_argument("--scaling", action="store_true", help="also run on one device, and print the ratio")
    parser.add_argument("overrides", nargs="*", help="after --: options that change the config")
    options = parser.parse_args()
    if options.budget.unit != "seconds":
        parser.error(f"--budget: {options.budget} is not a time, such as 30s or 3m")
    options.config = options.config or [default]
    if len(options.config) > 1 and options.beside is None:
        parser.error("--config: several are compared only with --beside; to combine configs, give the others after --")
    return options


def contenders(options: argparse.Namespace, devices: int, plain: bool) -> dict[Contender, Callable[[], Result]]:
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


def run_on_busy_cores(options: argparse.Namespace) -> dict[tuple[str, int], list[int]]:
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


def beside(options: argparse.Namespace) -> dict[Contender, Callable[[], Result]]:
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


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def measure_startup(config: Path, repeats: int, overrides: Sequence[str] = ()) -> dict[str, list[Result]]:
    """Starts a config's run several times, until the end of its first step.

    Returns:
        Results of scripts/startup_probe.py with empty (`cold`) and with filled (`warm`) caches of compiled code.
    """
    results: dict[str, list[Result]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * repeats, desc="starts") as bar:
        for repeat in range(repeats):
            for state, of_state in results.items():
                if state == "warm" and results["cold"][0]["compilation"] is None:
                    continue
                caches = {name: str(Path(folder, str(repeat), name)) for name in CACHES}
                result = Path(folder, "result.json")
                run_options = ["--config", str(config), *overrides, "--experiment", "startup"]
                quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", folder]
                command = [sys.executable, str(STARTUP_PROBE), str(result), "fit", *run_options, *quiet]
                run(command, {**os.environ, **caches, "BYTELM_STARTED": str(time.time())})
                of_state.append(json.loads(result.read_text()))
                bar.update()
    return {state: of_state for state, of_state in results.items() if of_state}


def startup_report(results: dict[str, list[Result]]) -> str:
    """Returns plain text: the medians of the results of `measure_startup`."""

    def row(name: str, values: Callable[[Result], dict[str, float]], *keys: str, form: str = ".2f") -> list[str]:
        sums = ([sum(values(result).get(key, 0.0) for key in keys) for result in of_state] for of_state in all_results)
        return [name, *(format(statistics.median(of_state), form) for of_state in sums)]

    def phases_of(result: Result) -> dict[str, float]:
        return result["phases"]

    def compilation_of(result: Result) -> dict[str, float]:
        return result["compilation"] or {}

    all_results = list(results.values())
    everything = [result for of_state in all_results for result in of_state]
    names = list(dict.fromkeys(name for result in everything for name in result["phases"]))
    short = [name for name in names if all(result["phases"].get(name, 0.0) < SHORT_PHASE for result in everything)]
    rows = [row(name, phases_of, name) for name in names if name not in short]
    rows += [
        row("short phases", phases_of, *short),
        row("start of the process to the first step", dict, "seconds"),
        row("CPU seconds of the process", dict, "cpu_seconds"),
        row("modules imported", dict, "modules", form=".0f"),
        row("the first step", dict, "first_step"),
    ]
    lines = aligned(["start-up, s", *(results if len(results) > 1 else [""])], rows)
    if compiled := compilation_of(everything[0]):
        longest = [name for name, _ in Counter(compiled).most_common(COMPILERS_PHASES)]
        header = ["of the compiler, s (they contain each other)", *results]
        lines += ["", *aligned(header, [row(name, compilation_of, name) for name in longest])]
    return "\n".join(lines)


def build_cli(config: Path, *options: str) -> BytelmCLI:
    sys.argv = sys.argv[:1]  # LightningCLI warns if there are both args and sys.argv
    return build(["--config", str(config), *options], run=False)


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


def peak(config: Path, overrides: Iterable[str] = ()) -> str:
    """Returns plain text: the machine's peak, the share that training reaches, and the time of a step by part."""
    training = measure_training(config, overrides)
    return peak_report(training, measure_products(training.device, training.linears))


@dataclass
class Training:
    """Measurements of a run.

    Attributes:
        device: The device.
        precision: Lightning's name of the precision.
        step_tokens: Tokens of a step.
        token_flops: FLOPs of training per token, as the network computes them.
        linears: Number of linear layers of each shape; tokens are those of a batch.
        batches: Batches that are accumulated into a step.
        step_seconds: Times of steps without further measurement.
        step_parts: Times of the parts of later steps, in seconds.
        profiled_seconds: Time of all profiled steps.
        operators: Calls in the profiled steps, and own seconds, of each operator, longest first.
    """

    device: torch.device
    precision: str
    step_tokens: int
    token_flops: int
    linears: Counter[Shape]
    batches: int
    step_seconds: list[float] = field(default_factory=list)
    step_parts: list[dict[str, float]] = field(default_factory=list)
    profiled_seconds: float = 0.0
    operators: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / statistics.median(self.step_seconds)

    @property
    def gflops(self) -> float:
        """GFLOP/s of the network's computations."""
        return self.tokens_per_second * self.token_flops / 1e9

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part: means over the middle half of the steps, without outliers."""
        ranked = sorted(self.step_parts, key=lambda parts: sum(parts.values()))
        middle = ranked[len(ranked) // 4 : len(ranked) - len(ranked) // 4]
        return {part: statistics.mean(parts[part] for parts in middle) for part in PARTS}


def measure_training(config: Path, overrides: Iterable[str] = ()) -> Training:
    """Trains the config's model for a few dozen steps, as `fit` would."""
    # A limit that the steps never reach: the end must not affect the schedule or the readings of the clock.
    fixed = ["--time_budget.limit", "24h", "--trainer.devices", "1", "--trainer.limit_val_batches", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--experiment", "peak"]
    cli = build_cli(config, *overrides, *fixed, *quiet)
    parts = PartTimer()
    meter = StepMeter(parts)
    cli.trainer.profiler = parts  # type: ignore[attr-defined]
    cli.trainer.callbacks.append(meter)  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(sys.stderr):  # the run's scores are not needed
        cli.trainer.fit(cli.model, cli.datamodule)
    return meter.training


class PartTimer(Profiler):
    """Sums the time of each part of a step, without the parts nested in it (backward in the optimizer's step).

    Lightning calls a profiler at the start and end of each action. Callbacks always count as the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open = [REST]
        self._wait: Callable[[], None] | None = None  # None: the clock is stopped

    def begin(self, wait: Callable[[], None]) -> None:
        """Starts the clock.

        Args:
            wait: Waits for the device, which assigns the work of a part to that part.
        """
        self._wait = wait
        self._since = time.perf_counter()
        self._taken = dict.fromkeys(PARTS, 0.0)

    def split(self) -> dict[str, float]:
        """Seconds of each part since the last split."""
        self._add()
        taken, self._taken = self._taken, dict.fromkeys(PARTS, 0.0)
        return taken

    def end(self) -> None:
        """Stops the clock."""
        self._wait = None

    def start(self, action_name: str) -> None:
        part = PART_OF_ACTION.get(action_name.rpartition(".")[2], self._open[-1])
        if action_name.startswith("[Callback]"):
            part = REST
        if part != self._open[-1]:
            self._add()
        self._open.append(part)

    def stop(self, action_name: str) -> None:
        if self._open[-1] != self._open[-2]:
            self._add()
        self._open.pop()

    def _add(self) -> None:
        if self._wait is None:
            return
        self._wait()
        now = time.perf_counter()
        self._taken[self._open[-1]] += now - self._since
        self._since = now


class StepMeter(Callback):
    """Measures a run's speed, the parts of its steps and its operators, then ends it. The last callback.

    Args:
        parts: The run's profiler.
    """

    training: Training

    def __init__(self, parts: PartTimer) -> None:
        super().__init__()
        self._parts = parts
        self._steps = 0
        self._profile = profile()  # all available activities, including a GPU's

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = tqdm(total=WARM_UP_STEPS + 2 * MEASURED_STEPS + PROFILED_STEPS, desc="steps", leave=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return  # the step has further batches
        self._steps = trainer.global_step
        self._bar.update()
        step = self._steps - WARM_UP_STEPS
        if step == 0:
            self.training = describe(trainer, pl_module, batch[0])
        if 0 <= step <= MEASURED_STEPS:
            self._measure_speed(trainer, step)
        elif MEASURED_STEPS < step <= 2 * MEASURED_STEPS:
            self.training.step_parts.append(self._parts.split())
        if step == MEASURED_STEPS:
            self._parts.begin(lambda: wait_for_device(trainer))
        elif step == 2 * MEASURED_STEPS:
            self._parts.end()
            self._profile.start()
            self._since = time.perf_counter()
        elif step == 2 * MEASURED_STEPS + PROFILED_STEPS:
            self._end_profile(trainer)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()

    def _measure_speed(self, trainer: Trainer, step: int) -> None:
        # Waiting for a device after every step would stop the program from running ahead of it.
        window = 1 if trainer.strategy.root_device.type == "cpu" else DEVICE_WINDOW
        if step % window:
            return
        wait_for_device(trainer)
        now = time.perf_counter()
        if step:
            self.training.step_seconds.append((now - self._since) / window)
        self._since = now

    def _end_profile(self, trainer: Trainer) -> None:
        wait_for_device(trainer)
        self.training.profiled_seconds = time.perf_counter() - self._since
        self._profile.stop()
        # Kernels of a device are left out: their time is part of the operators that launched them.
        events = [event for event in self._profile.key_averages() if event.device_type == DeviceType.CPU]
        cpu = trainer.strategy.root_device.type == "cpu"
        taken = {
            event.key: (event.count, (event.self_cpu_time_total if cpu else event.self_device_time_total) / 1e6)
            for event in events
        }
        self.training.operators = dict(sorted(taken.items(), key=lambda item: -item[1][1]))


def describe(trainer: Trainer, model: LightningModule, inputs: torch.Tensor) -> Training:
    """Describes a run whose batches have such inputs, (B, T), before any measurement."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return Training(
        device=trainer.strategy.root_device,
        precision=str(trainer.precision),
        step_tokens=inputs.numel() * trainer.accumulate_grad_batches,
        token_flops=model.gpt.flops_per_token(inputs.shape[1]),  # type: ignore[operator, union-attr]
        linears=Counter((inputs.numel(), layer.in_features, layer.out_features) for layer in layers),
        batches=trainer.accumulate_grad_batches,
    )


@dataclass
class Product:
    """A matrix product and its speed.

    Attributes:
        shape: Shape of the linear layer.
        kind: Which of the layer's products it is, a key of PRODUCTS.
        layers: Number of layers of that shape in the network; 0 for a square product, which measures the peak.
        gflops: GFLOP/s by dtype; None if the device does not support the dtype or would take too long.
    """

    shape: Shape
    kind: str
    layers: int = 0
    gflops: dict[torch.dtype, float | None] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        tokens, inputs, outputs = self.shape
        return 2 * tokens * inputs * outputs


def measure_products(device: torch.device, linears: Counter[Shape]) -> list[Product]:
    """Measures square products, for the peak, and the products of linear layers, in each dtype."""
    sizes = SQUARES if device.type == "cpu" else DEVICE_SQUARES
    products = [Product((size, size, size), "forward") for size in sizes]
    products += [Product(shape, kind, layers) for shape, layers in linears.items() for kind in PRODUCTS]
    known = dict.fromkeys(DTYPES, float("inf"))  # speed of the last product; the smallest product comes first
    for product in tqdm(products, desc="products", leave=False):
        for dtype in DTYPES:
            too_long = product.flops / 1e9 / known[dtype] > PATIENCE  # emulated, as float16 is on most CPUs
            measured = None if too_long else product_gflops(product, dtype, device)
            product.gflops[dtype] = measured
            known[dtype] = measured or known[dtype]
    return products


def product_gflops(product: Product, dtype: torch.dtype, device: torch.device) -> float | None:
    """The highest GFLOP/s of a product; None if the device does not support the dtype."""
    tokens, inputs, outputs = product.shape
    sizes = {"x": (tokens, inputs), "w": (outputs, inputs), "g": (tokens, outputs)}
    matrices = {name: torch.randn(size, device=device).to(dtype) for name, size in sizes.items()}
    timer = Timer(PRODUCTS[product.kind], globals=matrices, num_threads=torch.get_num_threads())
    try:
        measured = timer.blocked_autorange(min_run_time=PRODUCT_SECONDS)
    except RuntimeError:
        return None
    return product.flops / 1e9 / min(measured.times)


def peaks(products: list[Product]) -> dict[torch.dtype, float]:
    """The highest speed of square products, GFLOP/s by supported dtype."""
    rates = {dtype: [p.gflops[dtype] or 0.0 for p in products if not p.layers] for dtype in DTYPES}
    return {dtype: max(of_dtype) for dtype, of_dtype in rates.items() if any(of_dtype)}


def peak_report(training: Training, products: list[Product]) -> str:
    """Returns plain text: the share of the peak that training reaches, and the time of a step by part."""
    threads = f", {torch.get_num_threads()} threads" if training.device.type == "cpu" else ""
    device = torch.cuda.get_device_name(training.device) if training.device.type == "cuda" else training.device.type
    lines = [
        f"{device}{threads}, torch {torch.__version__}, precision {training.precision}",
        "",
        *product_lines(products, training.batches),
        "",
        *speed_lines(training, peaks(products)),
        "",
        *part_lines(training.parts),
        "",
        *operator_lines(training),
    ]
    return "\n".join(lines)


def product_lines(products: list[Product], batches: int) -> list[str]:
    reached = peaks(products)
    dtypes = list(reached)
    rows = []
    for product in products:
        name = " x ".join(map(str, product.shape))
        name += f", {product.kind}, {product.layers} of them" if product.layers else ""
        rows.append([name, *(f"{rate:.1f}" if (rate := product.gflops[dtype]) else "-" for dtype in dtypes)])
    rows.append(["peak (of the squares)", *(f"{reached[dtype]:.1f}" for dtype in dtypes)])
    own = [product for product in products if product.layers]
    gflop = batches * sum(product.layers * product.flops for product in own) / 1e9
    seconds = {dtype: products_seconds(own, dtype, batches) for dtype in dtypes}
    rows.append(["the network's products of a step, ms", *(f"{1e3 * s:.2f}" if s else "-" for s in seconds.values())])
    shares = [f"{gflop / s / reached[dtype]:.1%}" if s else "-" for dtype, s in seconds.items()]
    rows.append(["the network's products, share of the peak", *shares])
    return aligned(["GFLOP/s: tokens x inputs x outputs", *(name_of(dtype) for dtype in dtypes)], rows)


def products_seconds(products: list[Product], dtype: torch.dtype, batches: int) -> float | None:
    """Seconds of a step's products alone; None if one of them was not measured."""
    seconds = [p.layers * p.flops / 1e9 / rate for p in products if (rate := p.gflops[dtype])]
    return batches * sum(seconds) if len(seconds) == len(products) else None


def speed_lines(training: Training, reached: dict[torch.dtype, float]) -> list[str]:
    steps = training.step_seconds
    spread = f"{1e3 * min(steps):.2f} to {1e3 * max(steps):.2f}"
    rows = [
        ["tokens/s, median", f"{training.tokens_per_second:,.0f}"],
        [f"step, ms, median ({spread})", f"{1e3 * statistics.median(steps):.2f}"],
        ["FLOPs a token", f"{training.token_flops:,}"],
        ["model GFLOP/s", f"{training.gflops:.1f}"],
    ]
    shared = [dtype for dtype in (torch.float32, torch.bfloat16) if dtype in reached]
    rows += [[f"share of the {name_of(dtype)} peak", f"{training.gflops / reached[dtype]:.1%}"] for dtype in shared]
    return aligned(["training", ""], rows)


def part_lines(parts: dict[str, float]) -> list[str]:
    total = sum(parts.values())
    names = {"optimizer": "optimizer (clipping, step, zero_grad)", REST: "rest (callbacks, Lightning)"}
    taken = {**{names.get(part, part): seconds for part, seconds in parts.items()}, "step": total}
    rows = [[name, f"{1e3 * seconds:.2f}", f"{seconds / total:.1%}"] for name, seconds in taken.items()]
    return aligned(["part of a step (mean of the middle half of the steps)", "ms", "share"], rows)


def operator_lines(training: Training) -> list[str]:
    """The operators with the longest times. The profiler lengthens the step."""
    total = training.profiled_seconds
    taken = [(name[:60], f"{calls / PROFILED_STEPS:g}", s) for name, (calls, s) in training.operators.items()]
    others = sum(seconds for _, _, seconds in taken[TOP_OPERATORS:])
    idle = total - sum(seconds for _, _, seconds in taken)
    taken[TOP_OPERATORS:] = [("other operators", "", others), ("no operator", "", idle), ("step", "", total)]
    rows = [[name, calls, f"{1e3 * s / PROFILED_STEPS:.2f}", f"{s / total:.1%}"] for name, calls, s in taken]
    return aligned(["operator by own time, under torch.profiler", "calls", "ms", "share"], rows)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for name, *values in [header, *rows]:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return lines


if __name__ == "__main__":
    main()
