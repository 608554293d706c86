"""The Trainer of a run, made by the command `fit` or by `bytelm.fit` with objects: its options and their checks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bytelm.callbacks import BestCheckpoint, LastCheckpoint
from bytelm.errors import CheckpointError, ConfigError, run_error
from bytelm.hosts import check as check_hosts
from bytelm.hosts import meeting
from bytelm.precision import FP8
from bytelm.run_callbacks import as_list, connect
from bytelm.runs import checkpoint_io
from bytelm.runs.checkpoint_io import AtomicCheckpointIO, errors_are_the_checkpoints
from bytelm.runs.folder import RunFolder
from bytelm.strategies import check_devices, check_launch, make_strategy
from bytelm.system.files import check_folder
from bytelm.trainer_options.checks import check_options, run_error_of, trainer_error
from bytelm.trainer_options.epochs import AUTO, check_counts, check_ends
from bytelm.trainer_options.plugins import check_layer_sync

DEFAULTS = {
    "max_epochs": -1,  # only the time budget ends a run
    "log_every_n_steps": 10,
    "check_val_every_n_epoch": None,  # epochs do not decide when a run is validated, `val_check_interval` does
    "val_check_interval": AUTO,
    "num_sanity_val_steps": 0,  # a validation before training shows nothing that the final one does not
    "enable_model_summary": None,  # the header and the summary; true: Lightning's table of modules, too
}
_SHORT_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}  # Lightning's


def check_given(settings: Mapping[str, Any], trains: bool = True) -> None:
    """Checks options of the Trainer before it is made.

    Args:
        settings: The options.
        trains: Whether the Trainer trains; otherwise it only scores or predicts.

    Raises:
        ConfigError: One is not accepted.
    """
    check_options(settings)
    check_ends(settings)
    if trains:
        check_counts(settings)


def changed_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the Trainer that differ from the given ones: bytelm's strategies, and the precision.

    Args:
        settings: The given options.

    Raises:
        ConfigError: bytelm cannot train with the strategy or the devices.
    """
    changed: dict[str, Any] = {}
    check_devices(settings.get("strategy"), settings.get("devices"))
    if (strategy := make_strategy(settings.get("strategy"))) is not settings.get("strategy"):
        changed["strategy"] = strategy
    plugins = as_list(settings.get("plugins"))
    for plugin in (plugin for plugin in plugins if isinstance(plugin, Precision)):
        _check_precision(settings.get("precision"), plugin)
        changed["precision"] = None  # Lightning accepts only one of the two
    for plugin in (*plugins, getattr(settings.get("strategy"), "_checkpoint_io", None)):
        checkpoint_io.prepare(plugin)
    return changed


def _check_precision(given: Any, plugin: Precision) -> None:
    """Rejects `trainer.precision` beside a plugin of another precision, which alone would have an effect.

    Raises:
        ConfigError: The two differ.
    """
    if given is not None and _SHORT_PRECISIONS.get(str(given), str(given)) != plugin.precision:
        reason = f"trainer.plugins has {type(plugin).__name__} ({plugin.precision}); accepted: one of the two"
        raise ConfigError("trainer.precision", given, reason)


@contextmanager
def errors_of_options(given: Mapping[str, Any]) -> Iterator[None]:
    """Context in which errors of the Trainer's constructor are raised as ConfigError, with the name of the option.

    Args:
        given: The options, as plain values.
    """
    try:
        yield
    except (ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        if run_error(error) is not None:  # also a ConfigError, which names an option
            raise
        raise trainer_error(error, given) from error


@contextmanager
def running(
    trainer: Trainer, folder: RunFolder | None, config: Mapping[str, Any], keys: Mapping[str, type]
) -> Iterator[None]:
    """Context in which a Trainer runs; Lightning's errors about an option are raised as ConfigError.

    Args:
        trainer: The Trainer.
        folder: The run's folder, which is released at the end.
        config: The config, as plain values; `trainer` has the options of the Trainer.
        keys: Classes of the top-level keys of the config.
    """
    try:
        with meeting(trainer):
            yield
    except (MisconfigurationException, ModuleNotFoundError, RuntimeError) as error:
        if run_error(error) is not None or (rejected := run_error_of(error, config, keys)) is None:
            raise
        raise rejected from error
    finally:
        if folder is not None:
            folder.release()


def complete(trainer: Trainer, plugins: Sequence[Any]) -> None:
    """Puts the callbacks into their order, and checks what is known when the Trainer is made.

    Args:
        trainer: The Trainer.
        plugins: Its plugins.

    Raises:
        ConfigError: Its hosts or its plugins cannot work.
    """
    check_launch(trainer.strategy)
    connect(trainer)
    if not hasattr(trainer, "val_check_interval"):  # it is a time: EarlyStopping fails without the attribute
        trainer.val_check_interval = None  # type: ignore[assignment]
    if trainer._accelerator_connector.checkpoint_io is None:  # set neither as a plugin nor by a strategy
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    check_hosts(trainer)
    check_layer_sync(trainer, plugins)
    errors_are_the_checkpoints(trainer)
    _find_last(trainer)


def _find_last(trainer: Trainer) -> None:
    """Makes `ckpt_path="last"`, in the Trainer's methods, the run's last.ckpt.

    Lightning searches the folders of ModelCheckpoints alone. If it finds none, it scores the present weights.

    Args:
        trainer: The Trainer.
    """
    connector: Any = trainer._checkpoint_connector
    parse = connector._parse_ckpt_path

    def find(state_fn: TrainerFn, ckpt_path: Any, **options: Any) -> Any:
        last = LastCheckpoint.of(trainer)
        if ckpt_path == "last" and last is not None and last.path is not None and last.path.is_file():
            return str(last.path)
        found = parse(state_fn, ckpt_path, **options)
        if ckpt_path == "last" and found is None and state_fn != TrainerFn.FITTING:
            raise CheckpointError(
                "ckpt_path: the run has no last.ckpt; accepted: null for the present weights, or a path"
            )
        return found

    connector._parse_ckpt_path = find


def check_made(trainer: Trainer, settings: Mapping[str, Any], trains: bool = True) -> None:
    """Checks a Trainer that would otherwise fail, or train nothing, after the run has its folder.

    Args:
        trainer: The Trainer.
        settings: Its options.
        trains: Whether the Trainer trains; otherwise it only scores or predicts.

    Raises:
        ConfigError: An option is not accepted.
    """
    if isinstance(trainer.precision_plugin, FP8):
        trainer.precision_plugin.check(trainer.strategy)
    if trainer.accumulate_grad_batches < 1:
        raise ConfigError("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, "accepted: from 1")
    if settings.get("val_check_interval") == 0:
        raise ConfigError("trainer.val_check_interval", 0, "accepted: steps from 1, or a share above 0")
    for key, folder in _folders(trainer, trains):
        check_folder(key, folder)


def _folders(trainer: Trainer, trains: bool) -> Iterator[tuple[str, str | Path]]:
    """Yields the folders, beside the run's, that a Trainer writes to, each with its key."""
    for logger in trainer.loggers:
        if getattr(logger, "folder", None) is None and logger.save_dir:
            yield "trainer.logger.save_dir", logger.save_dir
    for callback in trainer.checkpoint_callbacks if trains else ():
        if folder := getattr(callback, "dirpath", None):
            yield f"{'checkpoint' if isinstance(callback, BestCheckpoint) else 'trainer.callbacks'}.dirpath", folder
    if folder := getattr(trainer.profiler, "dirpath", None):  # type: ignore[attr-defined]
        yield "trainer.profiler.dirpath", folder
