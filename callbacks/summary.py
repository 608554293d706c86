"""Summary: after a run, on standard error: how good its score is, a sample of its text, and the next commands.

    score   1.6100 bits per byte; unigram of bytes 4.54, uniform 8.00

The two other figures are the scores of models without context: one that gives each token the frequency that it has in
the validation text itself, and one that gives all tokens the same probability. They are computed from the same targets
as the score, in its unit.
"""

import math
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bytelm.callbacks.header import are_bytes, show
from bytelm.callbacks.run_folder import claimed_folder
from bytelm.callbacks.samples import Samples
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.untrusted_config import foreign
from bytelm.data.base import token_data
from bytelm.metrics import uniform_score, unigram_score
from bytelm.runs.folder import CONFIG, checkpoint_of
from bytelm.runs.logger import TensorBoardLogger
from bytelm.runs.score import score_for
from bytelm.system.invocation import typed_name
from bytelm.units import Duration, Unit

PACKAGES_OF_REPORT = ("matplotlib", "markdown", "scipy")


class Summary(Callback):
    """Prints a summary of a completed run.

    Args:
        config: The run's config, as plain values; None for a run that was made from objects.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self._folder: Path | None = None
        self._counts: Tensor | None = None  # of each token among the targets of a validation, int64, (vocab_size,)
        self._counted = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._folder = claimed_folder(trainer)
            self._counts, self._counted = None, False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        data = token_data(trainer)
        if self._counted or data is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return  # all validations are of the same text
        targets = batch[1].flatten()
        if batch_idx == 0 or self._counts is None:
            self._counts = torch.zeros(data.vocab_size, dtype=torch.long, device=targets.device)
        # Without a wait for the device, which bincount would need.
        self._counts.scatter_add_(0, targets.clamp(min=0), (targets >= 0).long())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counts is not None and not self._counted:
            self._counts = trainer.strategy.reduce(self._counts, reduce_op="sum")
            self._counted = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        lines = [*self._score(trainer), *self._sample(trainer), *self._next(trainer)]
        if lines:
            show(lines)

    def _score(self, trainer: Trainer) -> list[str]:
        data = token_data(trainer)
        if data is None or self._counts is None:
            return []
        score = score_for(data.counts_bytes)
        value = trainer.callback_metrics.get(score.tag)
        if value is None or not int(self._counts.sum()):
            return []
        token_bytes = data.token_bytes if data.counts_bytes else None
        how = (self._counts.cpu(), token_bytes, data.counts_bytes)
        tokens = "bytes" if are_bytes(data) else "tokens"
        others = f"unigram of {tokens} {unigram_score(*how):.2f}, uniform {uniform_score(*how):.2f}"
        shown = round(float(value), 6)  # as in the record, whose score was printed
        return [f"score   {shown:.4f} {score.unit}; {others}"]

    def _sample(self, trainer: Trainer) -> list[str]:
        samples = Samples.of(trainer)
        sample = None if samples is None else samples.latest
        if sample is None:
            return []
        return [f"sample  continues {sample.prompt!r} of the validation text:", *_indented(sample.text)]

    def _next(self, trainer: Trainer) -> list[str]:
        if self._folder is None:
            return []
        commands = {
            "text": self._generate(trainer, self._folder),
            "curves": self._tensorboard(trainer, self._folder),
            "compare": _compare(self._folder.parent.parent),
            "go on": self._longer(trainer, self._folder),
        }
        shown = [f"{title:7}  {command}" for title, command in commands.items() if command is not None]
        return [f"{'next' if number == 0 else '':6}  {line}" for number, line in enumerate(shown)]

    def _generate(self, trainer: Trainer, folder: Path) -> str | None:
        data = token_data(trainer)
        if self.config is None or data is None or not _is_kept(folder, "best", "last"):
            return None
        tokenizer = data.text_tokenizer()
        if tokenizer is None:
            return None
        options = ["--ckpt_path", str(folder)]
        if foreign(self.config["model"]["gpt"]):
            options += ["--config", str(folder / CONFIG)]
        if tokenizer.end_of_text is None:  # a text then begins with a prompt
            samples = Samples.of(trainer)
            if samples is None or samples.latest is None or not samples.latest.prompt.strip():
                return None
            options += ["--prompt", samples.latest.prompt.split()[0]]
        return _command("generate", *options)

    def _tensorboard(self, trainer: Trainer, folder: Path) -> str | None:
        if not any(isinstance(each, TensorBoardLogger) and each.in_run_folder for each in trainer.loggers):
            return None
        return shlex.join(["tensorboard", "--logdir", str(folder.parent.parent)])

    def _longer(self, trainer: Trainer, folder: Path) -> str | None:
        if self.config is None or not _is_kept(folder, "last"):
            return None
        limit = _doubled(self.config["time_budget"]["limit"], TimeBudget.of(trainer).progress.used)
        options = ["--config", str(folder / CONFIG), "--ckpt_path", "last", "--time_budget.limit", limit]
        return _command("fit", *options)


def _compare(runs: Path) -> str | None:
    if all(find_spec(package) for package in PACKAGES_OF_REPORT):
        return _command("report", str(runs))
    return _command("ledger") if runs == Path("runs") else None


def _command(*words: str) -> str:
    """Returns a command as a user would type it."""
    return f"{typed_name()} {shlex.join(words)}"


def _doubled(limit: str | list[str], used: Mapping[Unit, float]) -> str:
    """Returns twice a limit, or twice each of several, as a value for the command line.

    Args:
        limit: One or several, as in `time_budget.limit`.
        used: What the run has used of each unit. A run whose first step was longer than its limit has used more:
            twice that is returned, as a whole number.
    """
    limits = [Duration.parse(each) for each in (limit if isinstance(limit, list) else [limit])]
    amounts = [each.value if used[each.unit] <= each.value else math.ceil(used[each.unit]) for each in limits]
    texts = [str(Duration(2 * amount, each.unit)) for amount, each in zip(amounts, limits, strict=True)]
    return f"[{', '.join(texts)}]" if isinstance(limit, list) else texts[0]


def _is_kept(folder: Path, *names: str) -> bool:
    return any(checkpoint_of(folder, name).is_file() for name in names)


def _indented(text: str) -> list[str]:
    return [f"        {line}".rstrip() for line in text.strip("\n").splitlines()]
