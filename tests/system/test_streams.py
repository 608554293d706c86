"""Standard streams: text that cannot be written is dropped, or ends a command that is run for it."""

import errno
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import programs
import pytest

from bytelm import program
from bytelm.errors import OutputLost
from bytelm.system.process import ending_signals
from bytelm.system.streams import LastingStream, lasting_streams

FIT = [sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml"]


class Broken(io.StringIO):
    """A stream whose writes fail.

    Args:
        number: Of the system's error.
    """

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
def test_text_that_cannot_be_written_is_dropped(number):
    stream = LastingStream(Broken(number))
    print("a line", file=stream, flush=True)
    stream.writelines(["another\n"])
    assert stream.error.errno == number


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 141), (errno.ENOSPC, 5)])
def test_text_that_a_command_is_run_for_ends_it_where_it_cannot_be_written(number, status):
    stream = LastingStream(Broken(number), is_product=True)
    with pytest.raises(OutputLost) as lost:
        print("a line", file=stream)
    assert lost.value.exit_status == status
    print("more, at the end", file=stream)  # reported once


def test_characters_that_the_encoding_lacks_are_escaped():
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding="ascii"))
    print("é", file=stream, flush=True)
    assert raw.getvalue() == b"\\xe9\n"


def test_streams_are_put_back_unless_text_was_dropped(monkeypatch):
    out, err = io.StringIO(), Broken(errno.EPIPE)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with lasting_streams():
        print("a line")
        print("another", file=sys.stderr)
    assert sys.stdout is out
    assert out.getvalue() == "a line\n"
    assert isinstance(sys.stderr, LastingStream)


def test_the_error_that_ends_a_program_is_reported_rather_than_lost_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", LastingStream(Broken(errno.EPIPE)))
    with pytest.raises(ZeroDivisionError), lasting_streams(is_product=True):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("args", "expected"),
    [(["fit", "--config", "x"], False), (["export", "x"], False), (["generate", "x"], True), (["fit", "--help"], True)],
)
def test_which_commands_are_run_for_their_output(args, expected):
    assert program.prints_product(args[0], args[1:]) is expected


@pytest.mark.parametrize("redirection", [">/dev/full 2>&-", pytest.param(">&- 2>/dev/full", marks=pytest.mark.slow)])
def test_a_run_is_completed_without_its_output(redirection, folder):
    command = f"{shlex.join(FIT)} {redirection}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert '"completed"' in Path("runs/tiny/version_0/record.json").read_text()
    assert Path("runs/tiny/version_0/checkpoints/last.ckpt").exists()


def test_a_run_is_completed_when_its_reader_has_gone(folder):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"}
    process = programs.Program([*FIT, "--experiment", "é"], stdout=write, stderr=write, cwd=folder, env=environment)
    os.close(write)
    assert process.wait(60) == 0
    assert '"completed"' in Path("runs/é/version_0/record.json").read_text()


def test_help_that_cannot_be_written_is_an_error():
    with open("/dev/full", "w") as full:
        process = programs.Program([sys.executable, "-m", "bytelm", "--version"], stdout=full)
    assert process.wait(60) == 5


def test_a_hangup_ends_the_program_unless_it_is_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in ending_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in ending_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
