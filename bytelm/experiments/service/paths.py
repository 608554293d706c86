"""Removes paths of this machine, which clients must not see, from texts for clients."""

import re
import sys
import tempfile
from pathlib import Path

# An absolute path of at least two parts; not the path of a URL, nor a fraction such as 1/2.
_PATH = re.compile(r"(?<![\w./:-])(?:/[^\s/:'\"()<>,;]+)+/(?P<name>[^\s/:'\"()<>,;]*)")


def without_paths(text: str) -> str:
    """Returns a text with `…/name` in place of absolute paths.

    Args:
        text: A text such as a log with a traceback.
    """
    folders = {str(Path.cwd()), str(Path.home()), sys.prefix, sys.base_prefix, tempfile.gettempdir()} - {"/"}
    for folder in sorted(folders, key=len, reverse=True):  # literally, because they may contain spaces
        text = text.replace(f"{folder}/", "/…/")
    return _PATH.sub(lambda match: f"…/{match['name']}", text)
