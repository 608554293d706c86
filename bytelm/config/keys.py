"""The keys of a run's config, each with the class whose options are below it.

By import path: who reads a config for its network alone (inference/load.py) needs the names and none of the classes.
"""

from pydoc import locate

KEYS = {
    "experiment": "builtins.str",
    "init_from": "builtins.str",
    "seed_everything": "builtins.int",
    "trainer": "lightning.pytorch.Trainer",
    "model": "bytelm.language_model.LanguageModel",
    "data": "bytelm.data.base.TokenData",
    "time_budget": "bytelm.callbacks.TimeBudget",
    "lr_schedule": "bytelm.schedules.Schedule",
    "schedules": "bytelm.schedules.Schedule",
    "checkpoint": "lightning.pytorch.callbacks.ModelCheckpoint",
    "last_checkpoint": "bytelm.callbacks.LastCheckpoint",
    "divergence": "bytelm.callbacks.Divergence",
    "throughput": "bytelm.callbacks.Throughput",
}
# Options of Trainer.fit, validate, test and predict that are keys, too, with bytelm's defaults.
METHOD_DEFAULTS = {
    "weights_only": True,  # checkpoints load without unpickling code
    "verbose": False,  # the run record prints the scores
}
METHOD_KEYS = (*METHOD_DEFAULTS, "ckpt_path", "return_predictions")


def classes() -> dict[str, type]:
    """The class behind each key; imports all of them."""
    return {key: locate(path) for key, path in KEYS.items()}  # type: ignore[misc]
