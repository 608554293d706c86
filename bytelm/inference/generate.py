"""`python -m bytelm generate`: generates text with a trained network, token by token; several texts at once.

How tokens are drawn is in draw.py. Here a prompt becomes the first tokens of a row, and tokens become whole characters.
"""

import codecs
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.values import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from bytelm.data.tokenizer import ByteTokenizer, Tokenizer
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.inference.draw import batches, generate, generate_batch
from bytelm.inference.load import Trained, add_arguments, load_given
from bytelm.runs.choice import with_run

BETWEEN_SAMPLES = "\n---\n"


def continuation(
    gpt: GPT,
    tokenizer: Tokenizer,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = 0.95,
    seed: int | None = 42,
) -> Iterator[int]:
    """Draws the tokens that follow the first tokens of a row, as `write` does for a text.

    Args:
        gpt: The network, in evaluation mode.
        tokenizer: The tokenizer of its text.
        tokens: The first tokens, at least one; with the marker that begins a row, if rows have one, (T,).
        max_new_tokens: See `write`.
        temperature: See `write`.
        top_k: See `write`.
        top_p: See `write`.
        seed: See `write`.

    Yields:
        Each token as soon as it is drawn.
    """
    how = (max_new_tokens, temperature, top_k, top_p, seed)
    return generate(gpt, tokens, *how, **_limits(tokenizer))


def _limits(tokenizer: Tokenizer) -> dict[str, Any]:
    """Options of `generate_batch` that follow from the tokenizer."""
    is_bytes = isinstance(tokenizer, ByteTokenizer)
    stop = None if is_bytes else tokenizer.end_of_text
    return {"vocab_size": tokenizer.vocab_size, "stop": stop, "n_keep": int(is_bytes)}


def start_of(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The first tokens of a text that begins with a prompt, as in training.

    Rows of bytes begin with a marker. Documents of other tokens begin after an end-of-text token, which is used only
    without a prompt, because a prompt need not be the beginning of a document.

    Raises:
        ConfigError: The prompt is empty, and the tokenizer has no end-of-text token.
    """
    tokens = tokenizer.encode(prompt)
    if tokens and not isinstance(tokenizer, ByteTokenizer):
        return tokens
    if tokenizer.end_of_text is None:
        raise ConfigError("prompt", prompt, f"accepted with {tokenizer.name}, which has no end-of-text token: a text")
    return [tokenizer.end_of_text, *tokens]


class _Decoder:
    """Tokens to whole characters, one token at a time; a token can end within a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def text_of(self, token: int) -> str:
        """The characters that a token completes."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def rest(self) -> str:
        """The replacement of remaining bytes that form no character."""
        return self._decoder.decode(b"", final=True)


def write(
    trained: Trained,
    prompt: str = "",
    max_new_tokens: PositiveInt = 200,
    temperature: NonNegativeFloat = 0.8,
    top_k: PositiveInt | None = 50,
    top_p: UnitInterval | None = 0.95,
    seed: NonNegativeInt | None = 42,
    cached: bool = True,
) -> Iterator[str]:
    """Generates a text.

    Args:
        trained: The model.
        prompt: Beginning of the text.
        max_new_tokens: Maximum number of tokens to add. An end-of-text token also ends the text.
        temperature: Logits are divided by it; 0 selects the most probable token each time.
        top_k: Draws only from the k most probable tokens; null for all.
        top_p: Draws only from the smallest set of the most probable tokens whose total probability is at least top_p;
            null for all.
        seed: Seed of the draws; null for a random one. Further samples use the following seeds.
        cached: Whether to keep keys and values of earlier tokens.

    Yields:
        The prompt, then pieces of text.
    """
    how = (max_new_tokens, temperature, top_k, top_p, cached)
    for _, text in write_batch(trained, [prompt], [seed], *how, batch_size=1):
        yield text


def write_batch(
    trained: Trained,
    prompts: Sequence[str],
    seeds: Sequence[int | None],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    cached: bool,
    batch_size: int,
) -> Iterator[tuple[int, str]]:
    """Generates several texts at once.

    Args:
        trained: The model.
        prompts: Beginning of each text.
        seeds: Seed of the draws of each text; None for a random one.
        max_new_tokens: See `write`.
        temperature: See `write`.
        top_k: See `write`.
        top_p: See `write`.
        cached: See `write`.
        batch_size: Maximum number of texts in a forward pass.

    Yields:
        The number of a text, and a piece of it; its first piece is its prompt. The pieces of texts alternate.

    Raises:
        ConfigError: A prompt is empty, and the tokenizer has no end-of-text token.
    """
    tokenizer = trained.tokenizer
    starts = [start_of(tokenizer, prompt) for prompt in prompts]
    for numbers in batches([len(start) for start in starts], batch_size):
        for number in numbers:
            yield number, prompts[number]
        drawn = generate_batch(
            trained.gpt,
            [torch.tensor(starts[number]) for number in numbers],
            [seeds[number] for number in numbers],
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            cached,
            **_limits(tokenizer),
        )
        decoders = [_Decoder(tokenizer) for _ in numbers]
        for i, token in drawn:
            if text := decoders[i].text_of(token):
                yield numbers[i], text
        for number, decoder in zip(numbers, decoders, strict=True):
            if rest := decoder.rest():
                yield number, rest


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: Arguments after `python -m bytelm generate`.
    """
    args = with_run(["generate", *args])[1:]
    parser = CommandParser(
        "generate", description="Generates text with the network of a checkpoint, or of a run: generate RUN."
    )
    add_arguments(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        type=str,
        default=[],
        help="Beginning of the text; - for standard input. Can be repeated, for several texts.",
    )
    parser.add_function_arguments(write, skip={"trained", "prompt", "cached"})
    parser.add_argument(
        "--no_cache", action="store_true", help="Compute all tokens again for each new one; the text is the same."
    )
    parser.add_argument("--num_samples", type=PositiveInt, default=1, help="Number of texts for each prompt.")
    parser.add_argument("--batch_size", type=PositiveInt, default=16, help="Maximum number of texts in a forward pass.")
    given = vars(parser.parse_args(args))
    for each in _without_effect(given, parser):
        note(each)
    trained = load_given(given)
    cached = not given.pop("no_cache")
    if cached and trained.gpt.new_cache() is None:
        note("a part of this network does not support a cache; each token therefore takes longer")
    _print_samples(trained, cached=cached, **given)


def _without_effect(given: Mapping[str, Any], parser: CommandParser) -> Iterator[str]:
    """Yields notes of options that have no effect because of the temperature."""
    if given["temperature"] == 0:
        for key in ("top_k", "top_p", "seed"):
            if given[key] != parser.get_default(key):
                yield f"{key} has no effect with temperature 0, which selects the most probable token each time"
        if given["num_samples"] > 1:
            yield f"num_samples {given['num_samples']}: the samples of a prompt are equal with temperature 0"


def _print_samples(
    trained: Trained, num_samples: int, prompt: list[str], seed: int | None, batch_size: int, **how: Any
) -> None:
    prompts = [_read_prompt(given) for given in prompt or [""]]
    seeds = [None if seed is None else seed + sample for sample in range(num_samples)]
    texts = [*product(prompts, seeds)]
    for start in range(0, len(texts), batch_size):
        together = texts[start : start + batch_size]
        waiting = [""] * len(together)  # for the first one, which is printed as it arrives
        print(end=BETWEEN_SAMPLES if start else "")
        of_texts = [text for text, _ in together], [seed for _, seed in together]
        for number, text in write_batch(trained, *of_texts, **how, batch_size=batch_size):
            if number == 0:
                print(text, end="", flush=True)
            else:
                waiting[number] += text
        for text in waiting[1:]:
            print(BETWEEN_SAMPLES, text, sep="", end="")
    print(flush=True)


def _read_prompt(given: str) -> str:
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode()
    except UnicodeError as error:
        raise ConfigError("prompt", "-" if given == "-" else "what was given", f"it is not UTF-8: {error}") from error
    return prompt
