"""The keys of a run's config, each with the class whose options are below it.

The classes are given by import path: a reader that needs only the network (inference/load.py) imports none of them.
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
    "samples": "bytelm.callbacks.Samples",
}
# Options of Trainer.fit, validate, test and predict that are also keys, with bytelm's defaults.
METHOD_DEFAULTS = {
    "weights_only": True,  # checkpoints load without unpickling code
    "verbose": False,  # the scores are printed from the run record
}
METHOD_KEYS = (*METHOD_DEFAULTS, "ckpt_path", "return_predictions")


def classes() -> dict[str, type]:
    """Returns the class of each key; imports all of them."""
    return {key: locate(path) for key, path in KEYS.items()}  # type: ignore[misc]
