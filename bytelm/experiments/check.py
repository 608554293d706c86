"""Checker: checks whether a config can run, before it counts as a run.

The check builds everything of a config without training, in a separate process, which is kept for the next check. A bad
config therefore cannot end or change the calling process.
"""

import contextlib
import io
import json
import multiprocessing
import signal
import time
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bytelm.experiments import warm_start
from bytelm.experiments.memory_limit import LOOK_SECONDS, memory_of
from bytelm.system.process import end_worker_with_parent
from bytelm.units import Size

LOWER = "lower the sizes in model.gpt"


class Checker:
    """Checks configs. Use it in a `with` block, which ends its process.

    Args:
        memory_limit: Memory that a check may use; None for no limit.
        is_warm: Whether the process is a fork of one that has imported what runs need (warm_start.py), where possible.
    """

    def __init__(self, memory_limit: Size | None = None, is_warm: bool = False) -> None:
        self._memory_limit = memory_limit
        self._is_warm = is_warm and warm_start.is_possible()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Checker":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.close()
        else:
            self.end()

    def check(self, options: Sequence[str], seconds: float | None = None) -> tuple[dict[str, Any] | None, str]:
        """Checks a run.

        Args:
            options: The options of `python -m bytelm fit`.
            seconds: Time limit of the check; default none.

        Returns:
            The resolved config and an empty text, or None and the reason of the rejection.
        """
        if self._pool is None:
            context = warm_start.context() if self._is_warm else multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=_begin)
        try:
            result = self._pool.submit(_check, list(options))
            if self._memory_limit is None:
                return result.result(seconds)
            return self._wait(result, seconds, self._memory_limit)
        except futures.TimeoutError:
            self.end()
            return None, f"it takes more than {seconds:g} s to build; {LOWER}"
        except BrokenProcessPool:
            self.close()
            return None, f"the process that checks it died, perhaps because of a lack of memory; {LOWER}"

    def _wait(self, result: "Future[Any]", seconds: float | None, limit: Size) -> tuple[dict[str, Any] | None, str]:
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            try:
                return result.result(min(LOOK_SECONDS, max(left, 0.0)))
            except futures.TimeoutError:
                if left <= 0:
                    raise
            if memory_of(process.pid or 0 for process in multiprocessing.active_children()) > limit.bytes:
                self.end()
                return None, f"it takes more than {limit} of memory to build, the limit here; {LOWER}"

    def end(self) -> None:
        """Ends a running check, which then fails."""
        for process in multiprocessing.active_children():
            process.kill()
        self.close()

    def close(self) -> None:
        """Ends the process after a running check."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin() -> None:
    """Ignores Ctrl-C, which the parent handles, and ends the process with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_worker_with_parent()


def _check(options: list[str]) -> tuple[dict[str, Any] | None, str]:
    from bytelm.cli import build
    from bytelm.errors import run_error

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return json.loads(json.dumps(build(options, run=False).plain_config)), ""
    except SystemExit:  # from an option such as --help
        lines = said.getvalue().strip().splitlines() or ["it failed without an error message"]
        return None, lines[-1]
    except Exception as error:
        cause = run_error(error)
        text = str(cause) if cause is not None else f"{type(error).__name__}: {error}"
        return None, " ".join(text.split())
