"""SignalWatch: ends this process at a second signal while an operator runs.

Python calls a signal's handler between two of its instructions, in the main thread. A backward pass is one instruction,
and takes seconds for a large batch. A thread that waits for the numbers of signals, which Python's own C code writes to
a socket as they arrive, can end the process meanwhile.
"""

import signal
import socket
import threading
from collections.abc import Callable, Collection
from time import monotonic

GRACE_SECONDS = 1.0  # for the handler, which ends the process in good order


class SignalWatch:
    """Watches for a second signal, from the main thread's call until `close`.

    Args:
        signals: Signals to watch for.
        apart: Seconds from the first signal to one that is not its repetition.
        end: Ends the process; called in another thread, with the number of the second signal, unless this object is
            closed within GRACE_SECONDS.
    """

    def __init__(self, signals: Collection[int], apart: float, end: Callable[[int], None]) -> None:
        self._signals = signals
        self._apart = apart
        self._end = end
        self._closed = threading.Event()
        self._read, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True, name="signal-watch").start()

    def close(self) -> None:
        """Stops watching; called in the main thread. Further calls have no effect."""
        if not self._closed.is_set():
            self._closed.set()
            signal.set_wakeup_fd(self._before)
            self._written.close()  # ends the thread

    def _watch(self) -> None:
        first: float | None = None
        with self._read:
            while number := self._read.recv(1):
                if number[0] not in self._signals:
                    continue
                now = monotonic()
                if first is None:
                    first = now
                elif now - first >= self._apart:
                    if not self._closed.wait(GRACE_SECONDS):
                        self._end(number[0])
                    return
