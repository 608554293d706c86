"""Standard streams that cannot end a program: if a reader goes away, the text is lost, and the run continues.

A write to standard output or standard error can fail anywhere in the program: a terminal is closed, a `tee` dies, or a
disk is full. This module handles it once, for everything that writes to `sys.stdout` and `sys.stderr`: prints, progress
bars, warnings and loggers.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from bytelm.errors import OutputLost

NAMES = ("stdout", "stderr")


def can_redraw(stream: TextIO) -> bool:
    """Returns whether a line of a stream can be written again over itself: on a terminal, and in a notebook."""
    return stream.isatty() or is_notebook(stream)


def is_notebook(stream: TextIO) -> bool:
    """Returns whether a stream is shown in a notebook."""
    return type(stream).__module__.startswith("ipykernel.")


class LastingStream:
    """A text stream whose writes do not fail.

    Text that cannot be written is dropped; characters that the encoding lacks are written as escapes.

    Args:
        stream: The stream to write to.
        is_product: Whether the text is the program's result. If so, the program ends when it cannot be written.

    Attributes:
        error: The reason why text was dropped; None if none was.
    """

    def __init__(self, stream: TextIO, is_product: bool = False) -> None:
        self._stream = stream
        self._is_product = is_product
        self.error: OSError | None = None
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            try:
                stream.reconfigure(errors="backslashreplace")
            except OSError as error:  # it writes the buffered text
                self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it.

        Raises:
            OutputLost: The text cannot be written, and is the program's result.
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
        """Writes buffered text, as `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def fail_no_more(self) -> None:
        """Drops text from now on, even if it is the program's result."""
        self._is_product = False

    def _lose(self, error: OSError) -> None:
        is_first, self.error = self.error is None, self.error or error
        if is_first and self._is_product:
            raise OutputLost(error)


@contextmanager
def lasting_streams(is_product: bool = False) -> Iterator[None]:
    """Context in which standard output and standard error are LastingStreams.

    If text was dropped, they stay in place afterwards: the interpreter writes the buffers of the original streams at
    its end, and would report an error.

    Args:
        is_product: Whether standard output is the program's result.

    Raises:
        OutputLost: At the end, if `is_product` and the last text cannot be written.
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
                    stream.fail_no_more()  # only the error that ends the program is reported
            raise
        finally:
            for stream in lasting.values():
                stream.flush()
    finally:
        for name, stream in lasting.items():
            if stream.error is None and getattr(sys, name) is stream:
                setattr(sys, name, before[name])


def _open_missing() -> None:
    """Opens the null device in place of standard streams that are closed when the program starts (`>&-`).

    Otherwise a file that is opened later gets the number of a standard stream, and the output of C code and other
    programs is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this stream's
            os.set_inheritable(null, True)
    for name in NAMES:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
