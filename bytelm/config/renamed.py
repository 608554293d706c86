"""Import paths of bytelm's own classes that have changed.

Configs of earlier versions name classes by their old paths: config.yaml files, the configs in checkpoints, configs that
people wrote. They are read with the current paths. Up to version 0.1.0 the callbacks were a top-level package,
`callbacks`. That name belongs to the user now: it means bytelm's package only for classes that bytelm had in it, and
only where the user has no class of that name.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

_CALLBACKS = {
    "divergence": ("Divergence",),
    "interruption": ("Interruption", "Signals"),
    "last_checkpoint": ("LastCheckpoint",),
    "lr_schedule": ("Constant", "Cosine", "FromFunction", "Linear", "LRSchedule", "WarmupStableDecay"),
    "prediction_writer": ("PredictionWriter",),
    "progress_bar": ("BudgetBar",),
    "rank_watch": ("RankWatch",),
    "resume": ("Resume",),
    "run_record": ("RunRecord",),
    "throughput": ("Throughput",),
    "time_budget": ("TimeBudget",),
    "train_log": ("TrainLog",),
}
RENAMED = {
    **{f"callbacks.{name}": f"bytelm.callbacks.{name}" for names in _CALLBACKS.values() for name in names},
    **{
        f"callbacks.{module}.{name}": f"bytelm.callbacks.{name}"
        for module, names in _CALLBACKS.items()
        for name in names
    },
    "bytelm.checkpoints.AtomicCheckpointIO": "bytelm.runs.checkpoint_io.AtomicCheckpointIO",
    "bytelm.row_adagrad.RowAdagrad": "bytelm.optim.row_adagrad.RowAdagrad",
}


def is_users(path: str) -> bool:
    """Whether an import path leads to something in a module of the user's; imports the module, if there is one.

    Args:
        path: An old path.
    """
    if path.startswith("bytelm."):
        return False
    module, _, name = path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError as error:
        return not f"{module}.".startswith(f"{error.name}.")  # else it is there, and reports what it needs
    except Exception:
        return True  # likewise


def current_names(value: Any, trusted: bool = True) -> Any:
    """A config with today's import paths.

    Args:
        value: The config, or a part of it.
        trusted: Whether modules that it names may be imported, to see whether a class is the user's.
    """
    if isinstance(value, Mapping):
        return {key: current_names(inner, trusted) for key, inner in value.items()}
    if isinstance(value, list):
        return [current_names(inner, trusted) for inner in value]
    if isinstance(value, str) and value in RENAMED and not (trusted and is_users(value)):
        return RENAMED[value]
    return value


def current_callbacks(states: Any) -> Any:
    """The states of callbacks in a checkpoint, under the names of today's classes.

    Args:
        states: Those that Lightning wrote, by the class's name and its options. Up to version 0.1.0 the callback of the
            key `checkpoint` was Lightning's ModelCheckpoint, and the last one of those.
    """
    if not isinstance(states, Mapping):
        return states
    old = [key for key in states if isinstance(key, str) and key.startswith("ModelCheckpoint{")]
    return {key.replace("Model", "Best", 1) if key in old[-1:] else key: state for key, state in states.items()}
