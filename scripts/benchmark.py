"""What bytelm costs over a plain PyTorch loop, measured side by side.

    BYTELM_DATA=… python scripts/benchmark.py --budget 30s --repeats 5

Runs, in turn and `repeats` times over, each in a process of its own and for the same time:

* `bytelm`: `python -m bytelm fit` on a config, with TensorBoard and the progress bar on;
* `plain loop`: the same network, batches and optimizer in a PyTorch loop of twenty lines, in this file;
* `challenge script`: the byte-level challenge's winning script as it stands, where $BYTELM_REFERENCE (or
  --reference) names the folder that holds its harness and the corpus.

Prints medians and ratios. Leave the machine alone meanwhile: each of these uses every core.

    BYTELM_DATA=… python scripts/benchmark.py --callbacks --budget 30s

Trains once, and prints what each callback's hooks took of a step, in microseconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bytelm.units import Duration

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]
HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def main() -> None:
    options = parse()
    seconds = options.budget.value
    if options.callbacks:
        print(time_callbacks(options.config, seconds))
        return
    contenders: dict[str, Callable[[], Result]] = {
        "bytelm": lambda: run_bytelm(options.config, seconds),
        "plain loop": lambda: run_plain_loop(options.config, seconds),
    }
    if options.reference is not None:
        contenders["challenge script"] = lambda: run_challenge_script(options.reference, seconds)
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    with tqdm(total=options.repeats * len(contenders), desc="runs") as bar:
        for repeat in range(options.repeats):
            # The order turns round, so that a machine that warms up or slows down favours none.
            for name, run in list(contenders.items())[:: -1 if repeat % 2 else 1]:
                bar.set_postfix_str(name)
                results[name].append(run())
                bar.update()
    print(table(results, seconds))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs/autoresearch/32-rope-d80-ff256.yaml")
    parser.add_argument("--budget", type=Duration.parse, default=Duration.parse("30s"), help="time of each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference", type=Path, default=os.environ.get("BYTELM_REFERENCE"))
    parser.add_argument("--callbacks", action="store_true", help="what the callbacks take of a step, in place of that")
    parser.add_argument("--plain-loop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.budget.unit != "seconds":
        parser.error(f"--budget: {options.budget} is no time; accepted: 30s, 3m")
    if options.plain_loop:
        print(json.dumps(plain_loop(options.config, options.budget.value)))
        sys.exit()
    return options


def run_bytelm(config: Path, seconds: float) -> Result:
    command = [sys.executable, "-m", "bytelm", "fit", "--config", str(config), "--time_budget.limit", f"{seconds}s"]
    folder = next(line for line in run(command).splitlines() if line.startswith("run: "))
    return json.loads(Path(ROOT, folder.removeprefix("run: "), "record.json").read_text())


def run_plain_loop(config: Path, seconds: float) -> Result:
    return json.loads(
        run([sys.executable, __file__, "--plain-loop", "--config", str(config), "--budget", f"{seconds}s"])
    )


def run_challenge_script(reference: Path, seconds: float) -> Result:
    script = reference / "harness" / "run_challenge_script.py"
    return json.loads(run([sys.executable, str(script), "--budget", str(seconds)]))


def run(command: list[str]) -> str:
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def plain_loop(config: Path, seconds: float) -> Result:
    """Trains what the config describes, less its schedule, without Lightning, for so many seconds."""
    import torch

    from bytelm.cli import build

    sys.argv = sys.argv[:1]  # LightningCLI warns where it is given both
    cli = build(["--config", str(config)], run=False)
    model = cli.model
    batches = iter(cli.datamodule.train_dataloader())
    optimizer = model.configure_optimizers()
    clip = cli.trainer.gradient_clip_val
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        inputs, targets = next(batches)
        loss = model.loss(model.gpt(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        loss.item()  # as the challenge's script reads it
        steps += 1
    return {"total_steps": steps, "training_time_secs": time.perf_counter() - start}


def time_callbacks(config: Path, seconds: float) -> str:
    """Markdown: microseconds of a step that each callback's hooks take, on average."""
    from bytelm.cli import build
    from callbacks import TimeBudget

    sys.argv = sys.argv[:1]
    options = ["--config", str(config), "--time_budget.limit", f"{seconds}s", "--experiment", "callbacks"]
    cli = build(options, run=False)
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


def table(results: dict[str, list[Result]], seconds: float) -> str:
    """Markdown: steps per second of each contender, bytelm's ratio to it, and how bytelm kept time."""
    speeds = {name: [r["total_steps"] / r["training_time_secs"] for r in runs] for name, runs in results.items()}
    lines = ["| contender | steps/s, median (min to max) | bytelm / it, median of pairs |", "| --- | --- | --- |"]
    for name, own in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["bytelm"], own, strict=True))
        lines.append(f"| {name} | {statistics.median(own):.3f} ({min(own):.3f} to {max(own):.3f}) | {ratio:.4f} |")
    ours = results["bytelm"]
    errors = [r["training_time_secs"] - seconds for r in ours]
    step = statistics.median(r["training_time_secs"] / r["total_steps"] for r in ours)
    startup = [r["startup_time_secs"] for r in ours]
    lines += [
        "",
        f"start of the process to the first training step: {statistics.median(startup):.2f} s, median "
        f"({min(startup):.2f} to {max(startup):.2f})",
        f"training time less the budget: {min(errors):+.3f} to {max(errors):+.3f} s, where a step takes {step:.3f} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
