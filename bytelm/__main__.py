"""`python -m bytelm fit --config …`, and the other commands."""

import os
import signal
import sys
from importlib import import_module

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while torch is imported needs no traceback
# Of a rank that is gone torch writes a C++ stack, and RankWatch one line. To be set before torch is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Those beside LightningCLI's (cli.py). Imported when asked for: they need what `pip install bytelm[experiments]` adds.
COMMANDS = {
    "experiments": "bytelm.experiments.runner",
    "generate": "bytelm.inference.generate",
    "ledger": "bytelm.runs.ledger",
    "report": "bytelm.experiments.report.page",
    "serve": "bytelm.experiments.service.api",
    "evaluate": "bytelm.inference.evaluate",
    "import": "bytelm.inference.convert:main_import",
    "export": "bytelm.inference.convert:main_export",
}
EXTRAS = {"evaluate": "eval"}  # where it is another

if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or [""]
    try:
        name, _, function = COMMANDS.get(command, "bytelm.cli").partition(":")
        module = import_module(name)
    except ModuleNotFoundError as error:
        if command not in COMMANDS:
            raise
        extra = f'pip install -e ".[{EXTRAS.get(command, "experiments")}]"'
        import_module("bytelm.cli").fail(f"{command} needs {error.name}, which is not installed; {extra} brings it")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    getattr(module, function or "main")(arguments if command in COMMANDS else None)
