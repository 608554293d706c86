"""How this program was started, for messages and for help."""

import os
import sys


def typed_name() -> str:
    """Returns the program's name as the user has typed it: `bytelm`, or `python -m bytelm`."""
    return "python -m bytelm" if sys.argv[0].endswith(os.path.join("bytelm", "__main__.py")) else "bytelm"
