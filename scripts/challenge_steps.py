"""Runs the 36 configs of the byte-level challenge for its numbers of steps, instead of its 180 seconds.

    python scripts/challenge_steps.py --seeds 42 1 2 --workers 8

A step count makes a run independent of the machine's speed: the scores can be set beside the challenge's. Each worker
trains one run at a time, on one thread, in runs/challenge-steps/; runs that are there already are not repeated. The
script ends with a Markdown table, as in docs/autoresearch/steps.md.

The steps and scores of the challenge are those of configs/reports/autoresearch.yaml. Some runs have no published number
of steps: they get that of a run with the same network, or an estimate from networks of similar size (`~` in the table).
"""

import fnmatch
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError
from bytelm.program import errors_in_one_line

PROJECT = Path(__file__).resolve().parents[1]
STUDY = Path("runs", "challenge-steps")
# By run number. 7, 8, 9 and 12 have the network of run 3; 28, 30 and 31 that of 27; 34, 35 and 37 that of 32.
UNPUBLISHED = {
    **{"07": 206, "08": 206, "09": 206, "12": 206, "28": 229, "30": 229, "31": 229, "34": 243, "35": 243, "37": 243},
    **{"10": 206, "11": 190, "13": 103, "29": 205, "33": 257},  # estimates
}


def challenge(config: Path) -> dict[str, float]:
    """The challenge's figures of a config: `val_bpb`, and `total_steps` if they are known."""
    reported = yaml.safe_load((PROJECT / "configs/reports/autoresearch.yaml").read_text())["reported"]
    return next(figures for pattern, figures in reported.items() if fnmatch.fnmatch(config.stem, pattern))


def steps_of(config: Path) -> tuple[int, str]:
    """The number of steps of a config, and `~` if the challenge does not give it."""
    known = challenge(config).get("total_steps")
    return (UNPUBLISHED[config.stem[:2]], "~") if known is None else (int(known), "")


def train(config: Path, seed: int, limit: int) -> dict[str, Any]:
    """Trains a config, unless its run is there; returns the record.

    Args:
        config: The config file.
        seed: The seed.
        limit: Number of steps.
    """
    name = f"{config.stem},seed={seed}"
    for folder in sorted((STUDY / name).glob("version_*")):
        if (folder / "record.json").exists():
            record = json.loads((folder / "record.json").read_text())
            if record["status"] == "completed" and record["total_steps"] == limit:
                return record
    options = ["--experiment", f"{STUDY.name}/{name}", "--seed_everything", str(seed)]
    options += ["--time_budget.limit", f"{limit} steps", "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "-m", "bytelm", "fit", "--config", str(config), *options]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    newest = max((STUDY / name).glob("version_*"), key=lambda folder: int(folder.name.removeprefix("version_")))
    print(f"{name}: done", file=sys.stderr)
    return json.loads((newest / "record.json").read_text())


def table(configs: list[Path], scores: dict[tuple[str, int], float], seeds: list[int]) -> str:
    """The Markdown table of all configs.

    Args:
        configs: The configs, a row each.
        scores: val_bpb by config and seed.
        seeds: The seeds, a column each.
    """
    head = ["config", "steps", "challenge", "mean", *(f"seed {seed}" for seed in seeds), "mean less challenge"]
    lines = [head, ["---"] * len(head)]
    for config in configs:
        limit, mark = steps_of(config)
        reported = challenge(config)["val_bpb"]
        ours = [scores[config.stem, seed] for seed in seeds]
        mean = statistics.fmean(ours)
        cells = [f"{value:.3f}" for value in (reported, mean, *ours)]
        lines.append([config.stem, f"{mark}{limit}", *cells, f"{mean - reported:+.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = CommandParser(prog=Path(__file__).name, description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="seeds of each config")
    parser.add_argument("--workers", type=PositiveInt, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--configs", type=str, nargs="+", default=["*"], help="names or patterns of configs (32-*)")
    parser.add_argument("--steps", type=PositiveInt, help="steps of all runs, for a test")
    found = sorted((PROJECT / "configs/autoresearch").glob("*.yaml"))
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:])
        for name in options.configs:
            if not fnmatch.filter([config.stem for config in found], name):
                raise ConfigError("configs", name, f"accepted: names in {found[0].parent}, or patterns of them")
    configs = [config for config in found if any(fnmatch.fnmatch(config.stem, name) for name in options.configs)]
    jobs = [(config, seed) for seed in options.seeds for config in configs]
    with ThreadPoolExecutor(options.workers) as pool:
        records = pool.map(lambda job: train(job[0], job[1], options.steps or steps_of(job[0])[0]), jobs)
        scores = {(config.stem, seed): record["val_bpb"] for (config, seed), record in zip(jobs, records, strict=True)}
    print(table(configs, scores, options.seeds))


if __name__ == "__main__":
    main()
