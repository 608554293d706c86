"""Checks of the checkpoint that a command resumes or scores, with all that the run consists of.

runs/checkpoint_checks.py compares single parts of a checkpoint; here the objects of the run are known.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging

from bytelm.callbacks import TimeBudget
from bytelm.config.messages import note
from bytelm.data.base import TokenData
from bytelm.language_model import LanguageModel
from bytelm.optim import regroup
from bytelm.runs.checkpoint_checks import (
    RESUMED,
    check_average,
    check_compatible,
    check_optimizer,
    check_states,
    differences,
)
from bytelm.runs.checkpoints import Contents, read

KEEPERS = {"model.optimizer": "the optimizer", "seed_everything": "random generators"}  # of a checkpoint's values


def check_checkpoint(
    path: str, trainer: Trainer, model: LanguageModel, data: TokenData, config: dict[str, Any], resumes: bool
) -> None:
    """Checks a checkpoint before a run loads it; notes options that have other values in the checkpoint.

    Args:
        path: The checkpoint.
        trainer: The Trainer.
        model: The module that loads the weights.
        data: The data.
        config: The config of the run, as plain values.
        resumes: Whether training resumes from the checkpoint; otherwise it is scored, or predicts.

    Raises:
        CheckpointError: It does not fit.
        ConfigError: It has trained longer than the limit.
        DataError: It was trained on other data.
    """
    checkpoint = read(path, check=True)
    differing = check_compatible(path, checkpoint, model, config)
    if resumes:
        contents = Contents(checkpoint, path)
        if saved := contents.config:
            differing += differences(saved, config, RESUMED)
            if contents.has_budget and differences(saved, config, ("time_budget.limit",)):
                TimeBudget.of(trainer).check_resume(contents.budget)
        check_optimizer(path, checkpoint, config)
        _check_states(path, checkpoint, trainer, model, data)
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if check_average(path, checkpoint) and not averages:
            note(f"{path} has averaged weights (WeightAveraging); the run resumes with these")
        data.check_resume(contents.state_of(data))
    if differing:
        keepers = [keeper for key, keeper in KEEPERS.items() if any(line.startswith(key) for line in differing)]
        verb = "keeps" if keepers == ["the optimizer"] else "keep"
        kept = f" ({' and '.join(keepers)} {verb} those of the checkpoint)" if keepers else ""
        note(f"{path} was written with other values{kept}: {'; '.join(differing)}")


def _check_states(
    path: str, checkpoint: dict[str, Any], trainer: Trainer, model: LanguageModel, data: TokenData
) -> None:
    """Compares saved states with those of bytelm's and Lightning's objects before training."""
    likes: dict[tuple[str, ...], Any] = {
        ("callbacks", callback.state_key): callback.state_dict()
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if type(callback).__module__.startswith("bytelm.")
    }
    likes["loops", "fit_loop"] = trainer.fit_loop.state_dict()
    likes["loops", "fit_loop", "state_dict", "combined_loader"] = [{}]  # states of loaders
    if type(data).__module__.startswith("bytelm."):
        likes[type(data).__qualname__,] = {"position": 0, "repeated": 0, "corpus": ""}
    states = [regroup(state, model) for state in checkpoint["optimizer_states"]]
    check_states(path, checkpoint, likes, zip(states, [model.configure_optimizers()], strict=False))
