"""Threads wait as bytelm says, unless the environment says how."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch  # noqa: F401 (loads the library)

from bytelm.system.threads import SPIN_COUNT, WAITING, wait_briefly

LIBRARY = Path(find_spec("torch").submodule_search_locations[0]) / "lib" / "libgomp.so.1"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["neither", "a count", "a policy"],
)
def test_the_users_environment_wins(given, expected, monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    set_to = os.environ.get("GOMP_SPINCOUNT")
    if "GOMP_SPINCOUNT" not in given:
        os.environ.pop("GOMP_SPINCOUNT", None)
    assert set_to == expected


@pytest.mark.skipif(not LIBRARY.exists(), reason="this torch brings no GNU OpenMP")
def test_torchs_library_reads_the_variable_that_is_set_before_it_is_loaded():
    program = f"import ctypes; from bytelm.system.threads import *; wait_briefly(); ctypes.CDLL({str(LIBRARY)!r})"
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in ended.stderr
    assert str(LIBRARY) in Path("/proc/self/maps").read_text(), "torch has loaded another one"
