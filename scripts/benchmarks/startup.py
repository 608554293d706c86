"""Start-up: the time from the start of a process to the end of a run's first step, by phase."""

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.runs import ROOT, Result, run
from bytelm.experiments.text_table import aligned

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
    tables = [aligned([["start-up, s", *(results if len(results) > 1 else [""])], *rows])]
    if compiled := compilation_of(everything[0]):
        longest = [name for name, _ in Counter(compiled).most_common(COMPILERS_PHASES)]
        header = ["of the compiler, s (they contain each other)", *results]
        tables.append(aligned([header, *(row(name, compilation_of, name) for name in longest)]))
    return "\n\n".join(tables)
