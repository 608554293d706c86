"""scripts/benchmark.py --startup: phases exclude each other, and a run is measured until its first step."""

import json
import os
import sys
import time

import programs
from benchmarks.startup import startup_report

from scripts import startup_probe


def test_the_time_of_a_phase_excludes_those_within_it(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr(startup_probe.time, "perf_counter", lambda: next(clock))
    phases = startup_probe.Phases()
    with phases.phase("outer"), phases.phase("inner"):  # from 1 to 15, and in it from 3 to 7
        pass
    assert phases.end() == {startup_probe.REST: 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0}


def test_a_run_is_measured_until_its_first_step(folder):
    began = time.time()
    finished = programs.run(
        [sys.executable, "-m", "scripts.startup_probe", "result.json", "fit", "--config", "tiny.yaml"],
        env={**os.environ, "BYTELM_STARTED": str(began), "PYTHONPATH": str(programs.PROJECT)},
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads((folder / "result.json").read_text())
    assert sum(result["phases"].values()) <= result["seconds"] + 0.01
    assert {"config: parsing", "objects: network", "data", "warm-up: first pass, compilation"} <= set(result["phases"])
    assert result["first_step"] > 0
    assert result["compilation"] is None or isinstance(result["compilation"], dict)
    assert not list(folder.glob("runs/*/*/record.json"))  # it ended after the first step


def result(seconds, first, compiled=None):
    return {
        "seconds": seconds,
        "phases": {"imports: torch": seconds - first, "warm-up": first, "checks": 0.01},
        "cpu_seconds": 2.0,
        "modules": 1000,
        "first_step": 0.5,
        "compilation": compiled,
    }


def test_the_report_has_medians_with_empty_and_with_filled_caches():
    cold = [result(30.0 + i, 20.0, {"compile_fx": 15.0, "codegen": 9.0}) for i in range(3)]
    warm = [result(12.0 + i, 5.0, {"compile_fx": 0.5}) for i in range(3)]
    lines = [line.split() for line in startup_report({"cold": cold, "warm": warm}).splitlines()]
    assert lines[0][-2:] == ["cold", "warm"]
    assert ["imports:", "torch", "11.00", "8.00"] in lines
    assert ["short", "phases", "0.01", "0.01"] in lines
    assert ["start", "of", "the", "process", "to", "the", "first", "step", "31.00", "13.00"] in lines
    assert ["modules", "imported", "1000", "1000"] in lines
    assert ["compile_fx", "15.00", "0.50"] in lines


def test_the_report_of_a_run_that_compiles_nothing_has_one_column():
    lines = startup_report({"cold": [result(4.0, 1.0)]}).splitlines()
    assert lines[1].split() == ["imports:", "torch", "3.00"]
    assert not any("compiler" in line for line in lines)
