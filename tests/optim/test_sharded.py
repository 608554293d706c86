"""Optimizers on weights that are sharded over two ranks (FSDP2), run as processes."""

import os
import subprocess
import sys
from pathlib import Path


def test_sharded_weights_are_trained_and_resumed_as_whole_ones_are():
    here = Path(__file__).parent
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(here / "sharded_ranks.py")]
    path = os.pathsep.join([str(here.parents[1]), str(here)])
    ended = subprocess.run(
        [sys.executable, *launch],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
