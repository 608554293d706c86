"""`python -m bytelm generate`: text that a trained network writes, token by token.

Each token is drawn from what the network predicts after the tokens before it. Those it has seen are not computed again:
their keys and values are kept (KVCache, bytelm/parts/attention.py). When the text outgrows max_seq_len, its last part
goes on as a new row, and with or without the cache the text is the same.
"""

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.values import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from bytelm.data.tokenizer import ByteTokenizer, Tokenizer
from bytelm.errors import ConfigError
from bytelm.gpt import GPT, Cache
from bytelm.inference.load import Trained, add_arguments, load_given

BETWEEN_SAMPLES = "\n---\n"


def generate(
    gpt: GPT,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    cached: bool = True,
    vocab_size: int | None = None,
    stop: int | None = None,
    n_keep: int = 0,
) -> Iterator[int]:
    """Draws tokens that go on from others.

    When there are more than max_seq_len tokens, the network goes on with the last half of that many.

    Args:
        gpt: The network, in evaluation mode.
        tokens: What it goes on from, at least one token, (T,).
        max_new_tokens: How many to draw, at most.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_k: Only the k most probable tokens are drawn.
        top_p: Only the most probable tokens are drawn, as few as have this probability together (nucleus sampling:
            Holtzman et al. 2020, arXiv:1904.09751).
        seed: Of the draws; by default they differ each time.
        cached: Whether to keep keys and values, if all parts of the network can.
        vocab_size: Tokens from this one on are never drawn, as they only fill up the network's vocabulary.
        stop: Ends the text where it is drawn, and is not part of it.
        n_keep: How many of the first tokens stay when the text outgrows max_seq_len, such as a begin-of-row marker.

    Yields:
        Tokens, each as soon as it is drawn.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    device = next(gpt.parameters()).device
    window = tokens.tolist()
    cache = gpt.new_cache() if cached else None
    for _ in range(max_new_tokens):
        if len(window) > gpt.max_seq_len:
            window = _last_half(window, gpt.max_seq_len, n_keep)
            cache = gpt.new_cache() if cached else None
        logits = _next_logits(gpt, torch.tensor([window], device=device), cache)
        token = draw(logits[:vocab_size], temperature, top_k, top_p, generator)
        if token == stop:
            return
        yield token
        window.append(token)


def draw(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator) -> int:
    """Draws one token.

    Args:
        logits: One a token, on the CPU, (V,).
        temperature: See `generate`, as for the others.
        top_k: Of the tokens.
        top_p: Of what these have of the probability.
        generator: Of random numbers.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits, order = ((logits - logits.max()) / temperature).sort(descending=True, stable=True)
    probabilities = logits[:top_k].softmax(dim=0)
    if top_p is not None:  # a token stays if those before it do not suffice; so one always does
        before = probabilities.cumsum(dim=0) - probabilities
        probabilities[1:].masked_fill_(before[1:] >= top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


@torch.no_grad()
def _next_logits(gpt: GPT, tokens: Tensor, cache: Cache | None) -> Tensor:
    """Logits after the last of tokens (1, T), on the CPU, so that a seed draws the same there and on a GPU, (V,)."""
    logits = gpt(tokens) if cache is None else gpt(tokens, cache)
    return logits[0, -1].float().cpu()


def _last_half(window: list[int], max_seq_len: int, n_keep: int) -> list[int]:
    n_keep = min(n_keep, max_seq_len - 1)
    n_last = max(max_seq_len // 2 - n_keep, 1)
    return [*window[:n_keep], *window[-n_last:]]


def start_of(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Tokens that a text which begins with a prompt begins with.

    As in training: rows of bytes begin with a marker, and documents of other tokens with the end of the one before,
    which a prompt need not be the beginning of.

    Raises:
        ConfigError: There is no prompt, and the tokenizer has nothing to begin a text with.
    """
    tokens = tokenizer.encode(prompt)
    if tokens and not isinstance(tokenizer, ByteTokenizer):
        return tokens
    if tokenizer.end_of_text is None:
        raise ConfigError("prompt", prompt, f"accepted with {tokenizer.name}, which has no end-of-text token: a text")
    return [tokenizer.end_of_text, *tokens]


def text_of(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text as its tokens arrive: whole characters, as a token may end within one."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


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
    """Writes a text.

    Args:
        trained: The model.
        prompt: What the text begins with.
        max_new_tokens: How many tokens to add to it, at most; the end of a document ends the text, too.
        temperature: Logits are divided by it; 0 takes the most probable token each time.
        top_k: Only the k most probable tokens are drawn; null for all.
        top_p: Only the most probable tokens are drawn, as few as have this probability together; null for all.
        seed: Of the draws; null for another text each time. Further samples have the seeds that follow.
        cached: Whether to keep keys and values of the tokens before.

    Yields:
        The prompt, and then pieces of text.
    """
    tokenizer = trained.tokenizer
    is_bytes = isinstance(tokenizer, ByteTokenizer)
    tokens = torch.tensor(start_of(tokenizer, prompt))
    yield prompt
    drawn = generate(
        trained.gpt,
        tokens,
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        seed,
        cached,
        vocab_size=tokenizer.vocab_size,
        stop=None if is_bytes else tokenizer.end_of_text,
        n_keep=int(is_bytes),
    )
    yield from text_of(drawn, tokenizer)


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: What follows `python -m bytelm generate`.
    """
    parser = CommandParser("generate", description="Writes text with the network of a checkpoint.")
    add_arguments(parser)
    parser.add_argument("--prompt", type=str, default="", help="What the text begins with; - for standard input.")
    parser.add_function_arguments(write, skip={"trained", "prompt", "cached"})
    parser.add_argument("--no_cache", action="store_true", help="Compute all tokens anew each time: the same text.")
    parser.add_argument("--num_samples", type=PositiveInt, default=1, help="How many texts to write.")
    given = vars(parser.parse_args(args))
    trained = load_given(given)
    cached = not given.pop("no_cache")
    if cached and trained.gpt.new_cache() is None:
        note("a part of this network cannot go on from a cache, so that each token takes longer")
    _print_samples(trained, cached, **given)


def _print_samples(trained: Trained, cached: bool, num_samples: int, prompt: str, seed: int | None, **how: Any) -> None:
    try:
        prompt = sys.stdin.read() if prompt == "-" else prompt
        prompt.encode()
    except UnicodeError as error:
        raise ConfigError("prompt", "-" if prompt == "-" else "what was given", f"it is not UTF-8: {error}") from error
    try:
        for sample in range(num_samples):
            if sample:
                print(end=BETWEEN_SAMPLES)
            for text in write(trained, prompt, seed=None if seed is None else seed + sample, cached=cached, **how):
                print(text, end="", flush=True)
        print(flush=True)
    except BrokenPipeError:  # whoever reads has read enough, as `head` does; nothing is to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
