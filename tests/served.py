"""A service process and a client of it."""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import programs
import pytest
import yaml

httpx = pytest.importorskip("httpx")

PROJECT = Path(__file__).resolve().parents[1]


class Served:
    """A service process, and a client of it.

    Args:
        folder: Its working folder; corpus and baseline are created there.
        options: Options of its command line.
        baseline: The baseline's config.
        environment: Additional variables.
    """

    def __init__(self, folder, *options, baseline, **environment):
        self.folder = folder
        words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n"]
        rng = random.Random(0)
        (folder / "corpus.txt").write_text(" ".join(rng.choice(words) for _ in range(4000)))
        (folder / "baseline.yaml").write_text(yaml.safe_dump(baseline))
        self.errors = folder / "stderr.txt"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "bytelm", "serve", "--baseline", "baseline.yaml", f"--port={port}", *options]
        outside = {name: value for name, value in os.environ.items() if name != "BYTELM_TOKEN"}
        with open(self.errors, "ab") as errors:
            self.process = programs.Program(
                command, cwd=folder, env={**outside, "PYTHONPATH": str(PROJECT), **environment}, stderr=errors
            )
        headers = {"Authorization": f"Bearer {environment['BYTELM_TOKEN']}"} if "BYTELM_TOKEN" in environment else {}
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
        try:
            self.wait_until(self._is_there, 90)
        except BaseException:
            self.process.kill()
            raise

    def _is_there(self):
        assert self.process.poll() is None, self.errors.read_text()
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def wait_until(self, condition, seconds=60):
        """Waits until a condition is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.errors.read_text()
            time.sleep(0.1)
        return found

    def post(self, config, **options):
        """Sends a config, or a body."""
        body = json.dumps(config) if isinstance(config, dict) else config
        return self.client.post("/run", content=body, **options)

    def get(self, path, **options):
        answer = self.client.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def record(self, run_id, seconds=60):
        """Returns the report of a run, after it has ended."""
        self.wait_until(lambda: self.get(f"/runs/{run_id}")["status"] != "running", seconds)
        return self.get(f"/runs/{run_id}")

    def children(self):
        """Returns the ids of the processes that it has started."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
            child = int(stat.parent.name)
            found += [child] if parent == self.process.pid and not programs.is_starter(child) else []
        return found

    def end(self, signum=signal.SIGTERM):
        """Ends it, and returns its exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(60)
