"""scripts/terminal_picture.py: the lines that a terminal shows, and their picture."""

import sys
from xml.etree import ElementTree

from scripts.terminal_picture import COLUMNS, Screen, drawn, watched

PROGRAM = r"""
import sys
print("first é", end="\n 20%|#   | a long state", flush=True)
print("\r 50%|##  | half\x1b[K", end="", flush=True)
sys.stdin.read()
print("\x1b[A\rabove\n\r100%|####| done")
"""


def test_a_screen_shows_what_a_terminal_shows():
    screen = Screen()
    screen.feed("abc\rX\r\nsecond\x1b[1m bold\x1b[0m\x1b[A\r\nsecnd\x1b[K\r\n")
    assert screen.lines == ["Xbc", "secnd", ""]
    screen.feed("y" * (COLUMNS + 1))
    assert screen.lines[2:] == ["y" * COLUMNS, "y"]


def test_a_program_is_watched_during_and_after_its_run():
    early, late = watched([sys.executable, "-c", PROGRAM], during=50, prompt="$ it")
    assert early == ["$ it", "first é", " 50%|##  | half"]
    assert late == ["$ it", "above é", "100%|####| done"]


def test_the_picture_has_the_lines():
    picture = ElementTree.fromstring(drawn([["a & b", "", "c"], ["d"]]))
    assert [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")] == ["a & b", "c", "d"]
