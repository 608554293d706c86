"""Runs a command in a terminal of 80 columns, and draws the terminal as SVG: while the command runs, and at its end.

    python scripts/terminal_picture.py docs/terminal.svg -- fit --config configs/quickstart.yaml \\
        --time_budget.limit '200 steps'

draws the picture of docs/runs.md. The arguments after `--` are those of bytelm. The first part is what the terminal
shows when half of the time budget is used; with `--during 20`, when a fifth is used.
"""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from html import escape
from pathlib import Path

from bytelm.config.command import CommandParser
from bytelm.config.values import NonNegativeInt
from bytelm.program import errors_in_one_line

COLUMNS, ROWS = 80, 50
CELL, LINE, MARGIN, SIZE = 7.8, 17, 14, 13  # of a character, in pixels; 13 is the size of the font
STYLE = 'font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="13" fill="#e6edf3"'
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
SHARE = re.compile(r"(\d+)%\|")  # of the progress bar


class Screen:
    """What a terminal shows after a program's output: lines that wrap, carriage returns, and the cursor's movements.

    Attributes:
        lines: The lines, from the first one on.
    """

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        """Shows text; sequences other than those that move the cursor or erase a line change nothing."""
        at = 0
        while at < len(text):
            if match := ESCAPE.match(text, at):
                self._move(match[2], int(match[1]) if match[1].isdigit() else 1)
                at = match.end()
                continue
            character, at = text[at], at + 1
            if character == "\r":
                self.column = 0
            elif character == "\n":
                self._go_to(self.row + 1)
            elif character.isprintable():
                self._put(character)

    def _move(self, command: str, n: int) -> None:
        if command == "A":
            self._go_to(max(self.row - n, 0))
        elif command == "B":
            self._go_to(self.row + n)
        elif command == "K":
            self.lines[self.row] = self.lines[self.row][: self.column]

    def _go_to(self, row: int) -> None:
        self.row = row
        self.lines += [""] * (row + 1 - len(self.lines))

    def _put(self, character: str) -> None:
        if self.column == COLUMNS:
            self.column = 0
            self._go_to(self.row + 1)
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1


def watched(command: list[str], during: int, prompt: str = "") -> list[list[str]]:
    """Runs a command in a terminal.

    Args:
        command: The command.
        during: Percentage of the progress bar.
        prompt: What the terminal shows before the command's output.

    Returns:
        The lines of the terminal at that percentage, and at the end.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen, early = Screen(), None
    screen.feed(f"{prompt}\r\n" if prompt else "")
    rest = b""
    while True:
        try:
            rest += os.read(ours, 65536)
        except OSError:  # the program has closed its end
            break
        text = rest.decode(errors="ignore")
        if rest[-1] >= 0x80 or re.search(r"\x1b\[?[0-9;?]*$", text):
            continue  # a character, or a sequence, is not complete
        rest = b""
        for part in re.findall(r"[\r\n]+[^\r\n]*|[^\r\n]+", text):  # several states of the bar may come at once
            screen.feed(part)
            found = SHARE.findall("\n".join(screen.lines))
            if early is None and found and int(found[-1]) >= during:
                early = [*screen.lines]
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, "\n".join(screen.lines))
    return [_stripped(early or screen.lines), _stripped(screen.lines)]


def _stripped(lines: list[str]) -> list[str]:
    return "\n".join(line.rstrip() for line in lines).strip("\n").split("\n")


def drawn(parts: list[list[str]]) -> str:
    """Returns an SVG of terminals, one below the other.

    Args:
        parts: The lines of each.
    """
    width = COLUMNS * CELL + 2 * MARGIN
    pieces, top = [], 0.0
    for lines in parts:
        height = len(lines) * LINE + 2 * MARGIN
        pieces.append(f'<rect y="{top:g}" width="{width:g}" height="{height:g}" rx="8" fill="#0d1117"/>')
        for number, line in enumerate(lines):
            if line:
                y = top + MARGIN + number * LINE + SIZE
                # The length of each line is given: the columns fit together in any font.
                length = f'textLength="{len(line) * CELL:g}" lengthAdjust="spacingAndGlyphs"'
                pieces.append(f'<text x="{MARGIN}" y="{y:g}" {length} xml:space="preserve">{escape(line)}</text>')
        top += height + MARGIN
    body = "\n".join(pieces)
    size = f'width="{width:g}" height="{top - MARGIN:g}" viewBox="0 0 {width:g} {top - MARGIN:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<g {STYLE}>\n{body}\n</g>\n</svg>\n'


def main(args: list[str] | None = None) -> None:
    """Draws the picture.

    Args:
        args: The arguments; default those of the command line.
    """
    parser = CommandParser(prog=Path(__file__).name, passes_on=True, description=__doc__.partition("\n")[0])
    parser.add_argument("picture", help="the file to write")
    parser.add_argument("--during", type=NonNegativeInt, default=50, help="percentage of the budget of the first part")
    parser.add_argument("args", nargs="+", help="arguments of bytelm, after --")
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:] if args is None else args)
    prompt = f"$ python -m bytelm {shlex.join(options.args)}"
    parts = watched([sys.executable, "-m", "bytelm", *options.args], options.during, prompt)
    Path(options.picture).write_text(drawn(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
