"""A trained model, for use from Python: `from bytelm import load`.

model = load("runs/quickstart/version_0")
model.generate("def ")
model.score("def main():").bits_per_byte
"""

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.inference import load as checkpoints
from bytelm.inference.generate import write_batch
from bytelm.inference.load import Trained
from bytelm.inference.score import TextScore, score_texts
from bytelm.system.threads import set_waiting


class Model(Trained):
    """A trained model. It takes one text, or a list of texts, which then share forward passes.

    Attributes:
        gpt: The network, a torch.nn.Module in evaluation mode.
        tokenizer: Converts text to tokens and tokens to text.
    """

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = 0.95,
        seed: int | None = 42,
        batch_size: int = 16,
    ) -> str | list[str]:
        """Generates a text, or a list of texts.

        Args:
            prompt: Beginning of the text, or of each of several texts.
            max_new_tokens: Maximum number of tokens to add to each. An end-of-text token also ends a text.
            temperature: Logits are divided by it; 0 selects the most probable token each time.
            top_k: Draws only from the k most probable tokens; None for all.
            top_p: Draws only from the smallest set of the most probable tokens whose total probability is at least
                top_p; None for all.
            seed: Seed of the draws of the first text; further texts use the following seeds. None for random ones.
            batch_size: Maximum number of texts in a forward pass.

        Returns:
            The text with its prompt; for a list of prompts a list.

        Raises:
            ConfigError: A value is not accepted, or a prompt is empty and the tokenizer has no end-of-text token.
        """
        _check_count("max_new_tokens", max_new_tokens)
        if not _is_number(temperature) or temperature < 0:
            raise ConfigError("temperature", temperature, "accepted: a number from 0")
        if top_k is not None:
            _check_count("top_k", top_k)
        if top_p is not None and not (_is_number(top_p) and 0 <= top_p <= 1):
            raise ConfigError("top_p", top_p, "accepted: a number from 0 to 1, or None")
        if seed is not None:
            _check_count("seed", seed, least=0)
        _check_count("batch_size", batch_size)
        prompts = _texts("prompt", prompt)
        seeds = [None if seed is None else seed + number for number in range(len(prompts))]
        texts = [""] * len(prompts)
        how = (max_new_tokens, temperature, top_k, top_p)
        for number, piece in write_batch(self, prompts, seeds, *how, cached=True, batch_size=batch_size):
            texts[number] += piece
        return texts[0] if isinstance(prompt, str) else texts

    def score(self, text: str | Sequence[str], batch_size: int = 16) -> TextScore | list[TextScore]:
        """Scores a text, or a list of texts.

        Args:
            text: The text, or several; each at least one byte.
            batch_size: Number of rows of up to max_seq_len tokens in a forward pass.

        Returns:
            Bits per byte, and the cost of each token; for a list of texts a list.

        Raises:
            ConfigError: A text is empty, or the tokenizer has no token from which the first could be predicted.
        """
        _check_count("batch_size", batch_size)
        scores = score_texts(self, _texts("text", text), batch_size)
        return scores[0] if isinstance(text, str) else scores


def load(ckpt_path: str | Path = "last", config: str | Path | Sequence[str | Path] = (), device: str = "auto") -> Model:
    """Loads the model of a run.

    Args:
        ckpt_path: The folder of a run, for its best.ckpt; a checkpoint; or `last` or `best`, for that of the newest
            run.
        config: Config file, or files, of the run, in place of the config in the checkpoint; needed for parts of your
            own, whose code it runs.
        device: Such as `cpu` or `cuda`; `auto`: a GPU, if there is one.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, unsafe, has no config, or is of another network.
        ConfigError: The config or the device is invalid.
        DataError: The tokenizer cannot be loaded.
    """
    set_waiting()
    configs = [config] if isinstance(config, str | Path) else config
    trained = checkpoints.load(ckpt_path, configs, device)
    if trained.gpt.new_cache() is None:
        note("a part of this network does not support a cache; generation therefore takes longer")
    return Model(trained.gpt, trained.tokenizer)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_count(key: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(key, value, f"accepted: a whole number from {least}")


def _texts(key: str, given: str | Sequence[str]) -> list[str]:
    """A list of one text or several.

    Raises:
        ConfigError: There is something else in it.
    """
    texts = [given] if isinstance(given, str | bytes) or not isinstance(given, Sequence) else given
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(key, text, "accepted: a text, or a list of texts")
    return [*texts]
