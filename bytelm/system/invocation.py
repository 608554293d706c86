"""How this program was started, for messages and for help."""

import sys
from pathlib import Path


def typed_name() -> str:
    """Returns the program's name as the user has typed it: `bytelm`, or `python -m bytelm`.

    A script or a notebook has typed neither; the second name also works if `bytelm` is not on the PATH.
    """
    return "bytelm" if Path(sys.argv[0]).stem == "bytelm" else "python -m bytelm"
