"""The program: all commands in one table, and how each of them starts and ends.

A command is a function that takes its arguments and raises errors. This module imports the command's module, turns
signals into errors, and turns errors into one line on standard error and an exit status (errors.py). Large packages are
imported only after the command is known: the list of commands needs no torch.
"""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType, ModuleType
from typing import NamedTuple, NoReturn

import bytelm
from bytelm.config.suggestions import closest, did_you_mean
from bytelm.config.usage import HELP_ALL, missing_config, short_help
from bytelm.errors import ConfigError, Interrupted, OutputLost, RunError, run_error
from bytelm.system.environment import set_defaults
from bytelm.system.invocation import typed_name
from bytelm.system.postponed import postpone
from bytelm.system.process import default_signals_in_children, end_with_parent, ending_signals, is_rank_zero
from bytelm.system.streams import lasting_streams
from bytelm.system.threads import set_waiting


class Command(NamedTuple):
    """A command.

    Attributes:
        name: Its name after `bytelm`.
        module: The module of its function; imported only when the command is used.
        help: Description in the list of commands.
        extra: The optional dependencies that its module needs, as in `pip install bytelm[extra]`.
        function: Name of its function, which takes the arguments after the command's name.
        with_name: Whether the function also takes the name.
        prints: Whether its standard output is its result, not a summary of files.
    """

    name: str
    module: str
    help: str
    extra: str | None = None
    function: str = "main"
    with_name: bool = False
    prints: bool = False


COMMANDS = (
    Command("fit", "bytelm.cli", "Train a model under a budget of time, steps, tokens or FLOPs.", with_name=True),
    Command(
        "validate",
        "bytelm.cli",
        "Score a run or a checkpoint on the validation split.",
        with_name=True,
        prints=True,
    ),
    Command(
        "test",
        "bytelm.cli",
        "Score a run or a checkpoint on the whole validation split.",
        with_name=True,
        prints=True,
    ),
    Command(
        "predict", "bytelm.cli", "Write the cost of each token, in bits, of a run or a checkpoint.", with_name=True
    ),
    Command("generate", "bytelm.inference.generate", "Generate text with the network of a checkpoint.", prints=True),
    Command(
        "evaluate",
        "bytelm.inference.evaluate",
        "Score a checkpoint on tasks of lm-evaluation-harness.",
        "eval",
        prints=True,
    ),
    Command("import", "bytelm.inference.convert", "Make a checkpoint from GPT-2 weights.", function="main_import"),
    Command("export", "bytelm.inference.convert", "Make GPT-2 weights from a checkpoint.", function="main_export"),
    Command(
        "experiments",
        "bytelm.experiments.runner",
        "Run many experiments: a list of configs, a grid or a search.",
        "experiments",
    ),
    Command(
        "compare",
        "bytelm.experiments.compare",
        "Determine whether configs differ by more than noise, at equal time, tokens or FLOPs.",
        "experiments",
    ),
    Command(
        "plan",
        "bytelm.experiments.plan.command",
        "Find a network that fits a budget on this machine, by a few short and whole runs.",
        "experiments",
    ),
    Command("configs", "bytelm.config.shipped_list", "List the configs that bytelm comes with.", prints=True),
    Command("completion", "bytelm.completion", "Print a completion script for bash or zsh.", "completion", prints=True),
    Command("ledger", "bytelm.runs.ledger", "List all runs in ledger.csv."),
    Command("report", "bytelm.experiments.report.page", "Compare runs in tables and plots.", "experiments"),
    Command("serve", "bytelm.experiments.service.api", "Offer a training challenge over HTTP.", "experiments"),
)
OTHER_NAMES = {  # of other programs
    "train": "fit",
    "resume": "fit --ckpt_path last",
    "eval": "validate",
    "score": "validate",
    "sample": "generate",
    "sweep": "experiments",
    "tune": "experiments",
}
REPORTING = {"triton", "cutlass", "jaxlib"}  # extensions with nanobind, which reports objects that are left at the end
HELP_OPTIONS = ("-h", "--help")
LISTING_OPTIONS = ("", *HELP_OPTIONS, "--version")


def main(args: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        args: The command and its arguments; default: those that the program was started with.
    """
    name, *options = (sys.argv[1:] if args is None else args) or [""]
    with output_in_one_line(), lasting_streams(is_product=prints_product(name, options)):
        if name in LISTING_OPTIONS:
            show(name)
            return
        # The first command, LightningCLI's, also takes options before its name: `--config FILE fit`.
        command = COMMANDS[0] if name.startswith("-") else find(name)
        if command.with_name and command.name == name:
            if any(option in HELP_OPTIONS for option in options):
                print(short_help(name, command.help))
                sys.exit(0)
            if not options:
                print(missing_config(name), file=sys.stderr)
                sys.exit(ConfigError.exit_status)
            options = [HELP_OPTIONS[0] if option == HELP_ALL else option for option in options]
        function = load(command)
        with errors_in_one_line():
            end_with_parent()
            function([name, *options] if command.with_name else options)


def prints_product(name: str, options: list[str]) -> bool:
    """Returns whether standard output is the program's result, as it is for help."""
    is_help = any(
        option in (*HELP_OPTIONS, HELP_ALL) or option.startswith("--print_config") or ".help" in option
        for option in [name, *options]
    )
    return is_help or name in LISTING_OPTIONS or any(each.prints for each in COMMANDS if each.name == name)


def show(name: str) -> None:
    """Prints the version, or the list of commands; without any option, the list is an error."""
    if name == "--version":
        print(f"bytelm {bytelm.__version__}")
        return
    print(overview(), file=sys.stdout if name else sys.stderr)
    sys.exit(0 if name else ConfigError.exit_status)


def overview() -> str:
    """Returns a list of all commands, one per line."""
    program = typed_name()
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:{width}}  {command.help}" for command in COMMANDS]
    return "\n".join(
        [
            f"usage: {program} <command> [options]",
            "",
            "Train language models under a wall-clock budget.",
            "",
            "commands:",
            *lines,
            "",
            f"`{program} <command> --help` lists the options of a command; --version prints the version.",
        ]
    )


def find(name: str) -> Command:
    """Returns the command of a name; ends the program if there is none."""
    for command in COMMANDS:
        if command.name == name:
            return command
    names = [command.name for command in COMMANDS]
    meant = [OTHER_NAMES[name]] if name in OTHER_NAMES else closest(name, names)
    fail(f"unknown command {name!r}; {did_you_mean(meant)}accepted: {', '.join(names)}")


def load(command: Command) -> Callable[[list[str]], None]:
    """Returns the function of a command; ends the program if a package that it needs is not installed."""
    set_defaults()
    set_waiting()
    before = {signum: signal.signal(signum, _end_import) for signum in ending_signals()}
    postpone()
    try:
        module = import_large(command.module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if command.extra is None or package == "bytelm":
            raise
        fail(f'{command.name} needs {package}, which is not installed: pip install -e ".[{command.extra}]"')
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    function: Callable[[list[str]], None] = getattr(module, command.function)
    return function


def _end_import(signum: int, frame: FrameType | None) -> None:
    """Ends the program during an import, where an exception may be caught, or leave a traceback."""
    error = Interrupted(signum)
    print(f"bytelm: error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_status)


def import_large(name: str) -> ModuleType:
    """Imports a module without searching for garbage, and leaves its objects out of later searches, also in training.

    The objects of large packages live as long as the program; searching them took a quarter of the time of imports.
    Python searches again at its end: without these objects, that takes 0.2 instead of 0.9 s of CPU time after a short
    run, and half a second instead of three on a busy machine.
    """
    if name in sys.modules or not gc.isenabled():
        return import_module(name)
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if REPORTING & sys.modules.keys():
            atexit.register(gc.unfreeze)
        gc.enable()


def fail(message: str, exit_status: int = ConfigError.exit_status) -> NoReturn:
    """Ends the program with one line that gives the reason."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"bytelm: error: {line}", file=sys.stderr)
    sys.exit(exit_status)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Context in which the errors of errors.py end the program with one line and their exit status."""
    try:
        with interruptible():
            yield
    except Exception as error:
        if (cause := run_error(error)) is None:
            raise
        if cause.on_all_ranks and not is_rank_zero():
            sys.exit(cause.exit_status)  # rank 0 gives the reason
        end(cause)


@contextmanager
def output_in_one_line() -> Iterator[None]:
    """Context in which the loss of standard output ends the program, also at the last flush."""
    try:
        yield
    except OutputLost as error:
        end(error)


def end(error: RunError) -> NoReturn:
    """Ends the program with an error's line and its exit status."""
    if isinstance(error, OutputLost) and error.is_closed_pipe:
        sys.exit(error.exit_status)
    fail(str(error), error.exit_status)


@contextmanager
def interruptible() -> Iterator[None]:
    """Context in which ending signals raise Interrupted: at once, until callbacks/interruption.py has a step."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    def report(failed: threading.ExceptHookArgs) -> None:
        # TensorBoard's writing thread: the next call of the logger raises its error too.
        if not type(failed.thread).__module__.startswith("tensorboard"):
            threading.__excepthook__(failed)

    before = {signum: signal.signal(signum, interrupt) for signum in ending_signals()}
    default_signals_in_children()
    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = threading.__excepthook__
        for signum, handler in before.items():
            signal.signal(signum, handler)
