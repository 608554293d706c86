"""Runs a command of bytelm up to the end of its first training step, and writes where the time went, as JSON.

    python scripts/startup_probe.py result.json fit --config my.yaml

`scripts/benchmark.py --startup` runs it several times. A phase's time excludes the phases within it.
"""

import time

BEGAN = time.time()

import contextlib  # noqa: E402
import functools  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from bytelm import program  # noqa: E402

STARTED = "BYTELM_STARTED"  # an environment variable: when the process was started, in seconds since 1970
REST = "rest: Lightning, callbacks"


class Phases:
    """Measures nested phases; the time of each excludes those within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open = [REST]
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._add()
        self._open.append(name)
        try:
            yield
        finally:
            self._add()
            self._open.pop()

    def _add(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def end(self) -> dict[str, float]:
        """Seconds of all phases so far."""
        self._add()
        return dict(self.seconds)

    def time(self, owner: Any, name: str, phase: str | Callable[[], str]) -> None:
        """Replaces a function of a module, class or object by one that is measured.

        Args:
            owner: The module, class or object.
            name: The function's name.
            phase: The name of its phase, or a function that returns it at each call.
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase if isinstance(phase, str) else phase()):
                return function(*args, **kwargs)

        setattr(owner, name, timed)


phases = Phases()


def measured_import(name: str) -> Any:
    """Imports the module of a command, in steps."""
    with phases.phase("imports: torch"):
        importlib.import_module("torch")
    with phases.phase("imports: Lightning"):
        importlib.import_module("lightning.pytorch")
    with phases.phase("imports: bytelm and others"):
        module = importlib.import_module(name)
    measure_later_imports()
    measure_program(module)
    return module


def measure_later_imports() -> None:
    # Not builtins.__import__: the compiler executes 600,000 import statements, nearly all of loaded modules.
    machinery: Any = importlib._bootstrap  # CPython calls this function for the others
    phases.time(machinery, "_find_and_load", "imports: later, such as the compiler")


def measure_program(cli: Any) -> None:
    """Wraps what a run does before its first step."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import ParallelStrategy, Strategy

    from bytelm.callbacks import warm_up
    from bytelm.data import corpora
    from bytelm.gpt import GPT

    run = cli.BytelmCLI
    phases.time(run, "setup_parser", "command line: its options")
    phases.time(run, "parse_arguments", "config: parsing")
    phases.time(run, "_set_seed", "config: as plain values")
    phases.time(run, "instantiate_classes", "objects: trainer, callbacks")
    phases.time(GPT, "__init__", "objects: network")
    phases.time(run, "_check", "checks")
    phases.time(corpora, "sha256_of", "data: hash")
    phases.time(Trainer, "_run_sanity_check", "sanity validation")
    for strategy in (Strategy, ParallelStrategy, *subclasses(Strategy)):
        for method in ("setup_environment", "setup", "model_to_device", "setup_optimizers"):
            if method in vars(strategy):
                name = "process group" if method == "setup_environment" else "model to the device, strategy, optimizer"
                phases.time(strategy, method, name)
    passes = iter(["warm-up: first pass, compilation", "warm-up: second pass"])
    phases.time(warm_up, "_run_pass", lambda: next(passes, "warm-up: further passes"))
    make_trainer, after = run.instantiate_trainer, run.after_instantiate_classes

    def instantiate_trainer(self: Any, **kwargs: Any) -> Any:
        trainer = make_trainer(self, **kwargs)
        trainer.callbacks.append(first_step())
        return trainer

    def after_instantiate_classes(self: Any) -> None:
        for method in ("prepare_data", "setup", "train_dataloader"):
            phases.time(self.datamodule, method, "data")
        after(self)

    run.instantiate_trainer, run.after_instantiate_classes = instantiate_trainer, after_instantiate_classes


def subclasses(cls: Any) -> Iterator[Any]:
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)


def first_step() -> Any:
    """Returns the callback that ends the process after its first step."""
    from lightning.pytorch import Callback

    from bytelm.callbacks import TimeBudget
    from bytelm.callbacks.warm_up import wait_for_device

    class FirstStep(Callback):
        result: dict[str, Any] | None = None

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if self.result is None:
                self.result = {
                    "seconds": time.time() - float(os.environ[STARTED]),
                    "phases": {"start of Python": BEGAN - float(os.environ[STARTED]), **phases.end()},
                    "cpu_seconds": sum(os.times()[:2]),
                    "modules": len(sys.modules),
                    "startup_time_secs": TimeBudget.of(trainer).startup_seconds,
                    "compilation": compilation(),
                }
                self.since = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if not trainer.global_step:
                return  # of several batches of a step
            wait_for_device(trainer)
            assert self.result is not None
            self.result["first_step"] = time.perf_counter() - self.since
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                Path(RESULT).write_text(json.dumps(self.result))
            os._exit(0)

    return FirstStep()


def compilation() -> dict[str, float] | None:
    """Seconds of the compiler's own phases, which contain each other; None if nothing was compiled."""
    if "torch._dynamo.utils" not in sys.modules:
        return None
    metrics = getattr(sys.modules["torch._dynamo.utils"], "compilation_time_metrics", {})
    return {name: sum(seconds) for name, seconds in metrics.items()}


if __name__ == "__main__":
    RESULT = sys.argv[1]
    setattr(program, "import_module", measured_import)  # noqa: B010 (mypy knows its type)
    program.main(sys.argv[2:])
