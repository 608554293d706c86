"""Import paths of bytelm's own classes that have changed.

Configs of earlier versions name classes by their old paths: config.yaml files, the configs in checkpoints, and configs
that users wrote. Old paths are replaced by the current ones. Up to version 0.1.0, the callbacks were a top-level
package, `callbacks`. That name now belongs to the user: it means bytelm's package only for classes that bytelm had in
it, and only if the user has no class of that name.
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
    """Returns whether an import path leads to a module of the user's; imports the module, if it exists.

    Args:
        path: An old path.
    """
    if path.startswith("bytelm."):
        return False
    module, _, name = path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError as error:
        return not f"{module}.".startswith(f"{error.name}.")  # otherwise it exists, and lacks an import
    except Exception:
        return True  # the module exists


def current_names(value: Any, trusted: bool = True) -> Any:
    """Returns a config with the current import paths.

    Args:
        value: The config, or a part of it.
        trusted: Whether named modules may be imported, to find out whether a class is the user's.
    """
    if isinstance(value, Mapping):
        return {key: current_names(inner, trusted) for key, inner in value.items()}
    if isinstance(value, list):
        return [current_names(inner, trusted) for inner in value]
    if isinstance(value, str) and value in RENAMED and not (trusted and is_users(value)):
        return RENAMED[value]
    return value


def current_callbacks(states: Any) -> Any:
    """Returns the states of callbacks in a checkpoint, under the names of the current classes.

    Up to version 0.1.0, the callback of the key `checkpoint` was the last of Lightning's ModelCheckpoints.

    Args:
        states: The states that Lightning wrote, by the class's name and its options.
    """
    if not isinstance(states, Mapping):
        return states
    old = [key for key in states if isinstance(key, str) and key.startswith("ModelCheckpoint{")]
    return {key.replace("Model", "Best", 1) if key in old[-1:] else key: state for key, state in states.items()}
