"""Checker: tells what cannot run before it costs a run.

The check builds all that a config describes, short of training it, in a process of its own, which has imported torch
once and is kept for the next check: a bad config can neither end nor change the process that asks.
"""

import contextlib
import io
import json
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bytelm.system.process import end_worker_with_parent


class Checker:
    """Use it in a `with` block, which ends its process."""

    def __init__(self) -> None:
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
            options: What would follow `python -m bytelm fit`.
            seconds: How long that may take; default as long as it takes.

        Returns:
            The resolved config, or None; and what is wrong with it then.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin)
        try:
            return self._pool.submit(_check, list(options)).result(seconds)
        except futures.TimeoutError:
            self.end()
            return None, f"it takes more than {seconds:g} s to build; lower the sizes in model.gpt"
        except BrokenProcessPool:
            self.close()
            return None, "the process that checks it died (out of memory?)"

    def end(self) -> None:
        """Ends a check that is under way, which then has failed."""
        for process in multiprocessing.active_children():
            process.kill()
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin() -> None:
    """A Ctrl-C is for the parent, and without that nothing is left to be done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_worker_with_parent()


def _check(options: list[str]) -> tuple[dict[str, Any] | None, str]:
    from bytelm.cli import build
    from bytelm.errors import run_error

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return json.loads(json.dumps(build(options, run=False).plain_config)), ""
    except SystemExit:  # by an option such as --help
        lines = said.getvalue().strip().splitlines() or ["it failed without an error message"]
        return None, lines[-1]
    except Exception as error:
        cause = run_error(error)
        text = str(cause) if cause is not None else f"{type(error).__name__}: {error}"
        return None, " ".join(text.split())
