"""Samples: a sample of the model's text at each validation, and the last one after the run.

The model continues the start of the first validation row, each time with the same seed, so samples differ only by what
the model has learned. They are written to the loggers: TensorBoard shows them in its TEXT tab, as `val/sample`.

| logger | a sample is |
| --- | --- |
| TensorBoardLogger, and others whose `experiment` has `add_text` | a text |
| WandbLogger | a table of one row |
| MLFlowLogger | an artifact, samples/step_N.txt |
| CometLogger | a text |
| others | not logged |

Sampling leaves no trace in the training: it is not on the budget's clock, random states are restored, compiled networks
run uncompiled, and an error in it only ends the sampling.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple, Optional

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.messages import note
from bytelm.config.values import NonNegativeFloat, NonNegativeInt, PositiveInt
from bytelm.data.base import token_data
from bytelm.data.tokenizer import Tokenizer
from bytelm.errors import Interrupted, run_error
from bytelm.gpt import GPT
from bytelm.log_steps import logged_steps
from bytelm.system.postponed import is_loaded
from bytelm.system.random_states import random_states, set_random_states

TAG = "val/sample"
MOST_SECONDS = 1.0  # for a sample
MOST_SHARE = 0.05  # of the training time, for all samples but the last

Continuation = Callable[..., Iterator[int]]
"""Draws the tokens that follow others: bytelm.inference.generate.continuation."""


class Sample(NamedTuple):
    """A sample.

    Attributes:
        prompt: The text of the validation row's first tokens.
        text: The prompt, and the text that the model continues it with.
    """

    prompt: str
    text: str


class Samples(Callback):
    """Writes a sample of the model's text at each validation.

    A sample takes about a second at most, and all but the last take 5% of the training time together, which is not on
    the budget's clock; a slow network writes fewer tokens. There are no samples under fsdp, where no rank has the whole
    network, and with `time_budget.scope: run`, whose clock does not stop.

    Args:
        max_new_tokens: Maximum number of tokens that follow the prompt; 0: no samples.
        prompt_tokens: Number of tokens of the validation row that are the prompt; at most the whole row.
        temperature: Logits are divided by it; 0 selects the most probable token each time.
        seed: Seed of the draws.

    Attributes:
        latest: The last sample; None before the first.
        continuation: The function that generates text. `fit` sets it; in a Trainer of your own, set it to
            `bytelm.inference.generate.continuation`.
    """

    UNUSED_WITH: ClassVar = {
        "prompt_tokens": ("max_new_tokens", (0,)),
        "temperature": ("max_new_tokens", (0,)),
        "seed": ("temperature", (0, 0.0)),
    }

    def __init__(
        self,
        max_new_tokens: NonNegativeInt = 200,
        prompt_tokens: PositiveInt = 32,
        temperature: NonNegativeFloat = 0.8,
        seed: NonNegativeInt = 42,
    ) -> None:
        super().__init__()
        self.max_new_tokens = max_new_tokens
        self.prompt_tokens = prompt_tokens
        self.temperature = temperature
        self.seed = seed
        self.latest: Sample | None = None
        self.continuation: Continuation | None = None
        self._tokenizer: Tokenizer | None = None
        self._is_on = False
        self._sampled_at = 0.0  # training time at the last sample, in seconds

    @staticmethod
    def of(trainer: Trainer) -> Optional["Samples"]:
        """Returns the Samples of a trainer, if there are any."""
        return next((c for c in trainer.callbacks if isinstance(c, Samples)), None)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.latest = None
        self._is_on = False
        if not self.max_new_tokens or not trainer.is_global_zero:
            return
        reason = self._why_not(trainer, pl_module)
        self._is_on, self._sampled_at = reason is None, TimeBudget.of(trainer).training_seconds
        if reason is not None:
            note(f"no samples of text: {reason} (samples.max_new_tokens: 0 leaves them out)")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Here and not at the validation's end: WeightAveraging has put the average into the module, which is scored.
        is_first = batch_idx == 0 and dataloader_idx == 0
        if not self._is_on or not is_first or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        try:
            with _untraced(trainer):
                self.latest = self._sample(pl_module, batch[0], self._most_seconds(trainer))
            for logger in trainer.loggers:
                _log(logger, self.latest, logged_steps(trainer) - 1)
        except Exception as error:
            if isinstance(run_error(error), Interrupted):
                raise
            self._is_on = False
            note(f"no more samples of text: {type(error).__name__}: {error}")

    def _why_not(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Returns the reason why no samples can be written; None if they can."""
        data = token_data(trainer)
        if data is None or not isinstance(getattr(pl_module, "gpt", None), GPT):
            return "they need a network of bytelm as `gpt` of the module, and data of bytelm"
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            return f"under {type(trainer.strategy).__name__} no rank has the whole network"
        if TimeBudget.of(trainer).scope == "run":
            return "the clock of time_budget.scope run does not stop for them"
        if self.continuation is None:
            return "Samples.continuation is not set"
        try:
            self._tokenizer = data.text_tokenizer()
        except Exception as error:  # the data may be a user's
            return f"the tokenizer cannot be loaded: {error}"
        return None if self._tokenizer is not None else "the tokenizer of the data is not known"

    def _most_seconds(self, trainer: Trainer) -> float:
        """Returns the time that the next sample may take."""
        seconds = TimeBudget.of(trainer).training_seconds
        recent, self._sampled_at = seconds - self._sampled_at, seconds
        return MOST_SECONDS if trainer.should_stop else min(MOST_SECONDS, MOST_SHARE * recent)

    def _sample(self, pl_module: Any, inputs: Tensor, seconds: float) -> Sample:
        assert self.continuation is not None
        assert self._tokenizer is not None
        n_markers = int(self._tokenizer.bytes_of[int(inputs[0, 0])] == b"")  # that begins a row
        start = inputs[0, : self.prompt_tokens + n_markers].clone()
        tokens = start.tolist()
        n_prompt = len(tokens)
        end = time.monotonic() + seconds
        options = {"temperature": self.temperature, "seed": self.seed}
        for token in self.continuation(pl_module.gpt, self._tokenizer, start, self.max_new_tokens, **options):
            tokens.append(token)
            if time.monotonic() > end:
                break
        prompt, text = (_printable(self._tokenizer.decode(some)) for some in (tokens[:n_prompt], tokens))
        return Sample(prompt, text)


@contextmanager
def _untraced(trainer: Trainer) -> Iterator[None]:
    """Context for computations of a network that must not change its training."""
    states = random_states()
    # Compiled networks would be compiled again for each length. set_stance loads the compiler, which takes seconds.
    is_compiling = is_loaded("torch._dynamo")
    stance = torch.compiler.set_stance("force_eager") if is_compiling else nullcontext()
    try:
        # Not in inference mode: a part may keep a tensor from here, such as a mask, for training.
        with stance, torch.inference_mode(False), torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield
    finally:
        set_random_states(states)


def _printable(text: str) -> str:
    """A text without characters that control a terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


def _log(logger: Logger, sample: Sample, step: int) -> None:
    """Writes a sample to a logger of any class, if it can store texts."""
    name = type(logger).__name__  # of classes whose packages may not be installed
    experiment: Any = getattr(logger, "experiment", None)
    if name == "WandbLogger":
        logger.log_text(TAG, columns=["prompt", "text"], data=[list(sample)], step=step)  # type: ignore[attr-defined]
    elif name == "MLFlowLogger":
        experiment.log_text(logger.run_id, sample.text, f"samples/step_{step}.txt")  # type: ignore[attr-defined]
    elif hasattr(experiment, "add_text"):
        # TensorBoard shows Markdown: indented lines keep their spaces and line ends.
        lines = "\n".join(f"    {line}" for line in sample.text.split("\n"))
        experiment.add_text(TAG, lines, step)
    elif name == "CometLogger":
        experiment.log_text(sample.text, step=step)
