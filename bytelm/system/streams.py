"""Standard streams that cannot end a program: a reader that goes away costs the text, and not the run.

A terminal that is closed, a `tee` that dies and a disk that is full make a write to standard output or standard error
fail, wherever in the program it is. Here that is handled once, for everything that writes to `sys.stdout` and
`sys.stderr`: prints, progress bars, warnings and loggers.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from bytelm.errors import OutputLost

NAMES = ("stdout", "stderr")


class LastingStream:
    """A text stream whose writes do not fail.

    Text that cannot be written is dropped; characters that the encoding does not have are written as escapes.

    Args:
        stream: Where text is written.
        is_product: Whether the text is what the program is run for. Then the program ends where it cannot be written.

    Attributes:
        error: Why text was dropped; None if none was.
    """

    def __init__(self, stream: TextIO, is_product: bool = False) -> None:
        self._stream = stream
        self._is_product = is_product
        self.error: OSError | None = None
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            try:
                stream.reconfigure(errors="backslashreplace")
            except OSError as error:  # it writes what is buffered
                self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it.

        Raises:
            OutputLost: It cannot be written, and is what the program is run for.
        """
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes lines, as `write` does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Writes what is buffered, as `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def fail_no_more(self) -> None:
        """Drops text from now on also if it is what the program is run for."""
        self._is_product = False

    def _lose(self, error: OSError) -> None:
        is_first, self.error = self.error is None, self.error or error
        if is_first and self._is_product:
            raise OutputLost(error)


@contextmanager
def lasting_streams(is_product: bool = False) -> Iterator[None]:
    """Inside, standard output and standard error are LastingStreams.

    They stay in place afterwards if text was dropped: the interpreter writes the buffers of the others at its end, and
    would report an error.

    Args:
        is_product: Whether standard output is what the program is run for.

    Raises:
        OutputLost: At the end, where `is_product` and the last text cannot be written.
    """
    _open_missing()
    before = {name: getattr(sys, name) for name in NAMES}
    lasting = {name: LastingStream(stream, is_product and name == "stdout") for name, stream in before.items()}
    for name, stream in lasting.items():
        setattr(sys, name, stream)
    try:
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):
                for stream in lasting.values():
                    stream.fail_no_more()  # the error that ends the program is the one to report
            raise
        finally:
            for stream in lasting.values():
                stream.flush()
    finally:
        for name, stream in lasting.items():
            if stream.error is None and getattr(sys, name) is stream:
                setattr(sys, name, before[name])


def _open_missing() -> None:
    """Opens the null device in place of standard streams that the program was started without (`>&-`).

    Otherwise a file that is opened later gets the number of a standard stream, and what C code and other programs print
    is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(null, True)
    for name in NAMES:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
