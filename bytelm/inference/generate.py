"""`python -m bytelm generate`: generates text with a trained network, token by token.

Each token is drawn from the network's prediction after the tokens before it. A cache keeps the keys and values of
earlier tokens (KVCache, bytelm/parts/attention.py). When the text exceeds max_seq_len, its last part starts a new row.
The text is the same with and without the cache.
"""

import codecs
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
    """Draws the tokens that follow a sequence of tokens.

    When the sequence exceeds max_seq_len tokens, the network continues with its last max_seq_len / 2 tokens.

    Args:
        gpt: The network, in evaluation mode.
        tokens: The sequence to continue, at least one token, (T,).
        max_new_tokens: Maximum number of tokens to draw.
        temperature: Logits are divided by it; 0 selects the most probable token.
        top_k: Draws only from the k most probable tokens.
        top_p: Draws only from the smallest set of the most probable tokens whose total probability is at least top_p
            (nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751).
        seed: Seed of the draws; default a random one.
        cached: Whether to keep keys and values, if all parts of the network support it.
        vocab_size: Only tokens below it are drawn; the others are padding of the network's vocabulary.
        stop: Token that ends the text, without being part of it.
        n_keep: Number of first tokens, such as a begin-of-row marker, that are kept when the text exceeds max_seq_len.

    Yields:
        Each token as soon as it is drawn.
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
        temperature: See `generate`.
        top_k: See `generate`.
        top_p: See `generate`; applied to the tokens that top_k leaves.
        generator: Generator of random numbers.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits, order = ((logits - logits.max()) / temperature).sort(descending=True, stable=True)
    probabilities = logits[:top_k].softmax(dim=0)
    if top_p is not None:  # a token stays if the tokens before it have less than top_p; the first always stays
        before = probabilities.cumsum(dim=0) - probabilities
        probabilities[1:].masked_fill_(before[1:] >= top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


@torch.no_grad()
def _next_logits(gpt: GPT, tokens: Tensor, cache: Cache | None) -> Tensor:
    """Logits after the last of tokens (1, T), (V,); on the CPU, where a seed draws the same for all devices."""
    logits = gpt(tokens) if cache is None else gpt(tokens, cache)
    return logits[0, -1].float().cpu()


def _last_half(window: list[int], max_seq_len: int, n_keep: int) -> list[int]:
    n_keep = min(n_keep, max_seq_len - 1)
    n_last = max(max_seq_len // 2 - n_keep, 1)
    return [*window[:n_keep], *window[-n_last:]]


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


def text_of(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text as its tokens arrive, in whole characters; a token can end within a character."""
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
    parser = CommandParser("generate", description="Generates text with the network of a checkpoint.")
    add_arguments(parser)
    parser.add_argument("--prompt", type=str, default="", help="Beginning of the text; - for standard input.")
    parser.add_function_arguments(write, skip={"trained", "prompt", "cached"})
    parser.add_argument(
        "--no_cache", action="store_true", help="Compute all tokens again for each new one; the text is the same."
    )
    parser.add_argument("--num_samples", type=PositiveInt, default=1, help="Number of texts.")
    given = vars(parser.parse_args(args))
    trained = load_given(given)
    cached = not given.pop("no_cache")
    if cached and trained.gpt.new_cache() is None:
        note("a part of this network does not support a cache; each token therefore takes longer")
    _print_samples(trained, cached, **given)


def _print_samples(trained: Trained, cached: bool, num_samples: int, prompt: str, seed: int | None, **how: Any) -> None:
    try:
        prompt = sys.stdin.read() if prompt == "-" else prompt
        prompt.encode()
    except UnicodeError as error:
        raise ConfigError("prompt", "-" if prompt == "-" else "what was given", f"it is not UTF-8: {error}") from error
    for sample in range(num_samples):
        if sample:
            print(end=BETWEEN_SAMPLES)
        for text in write(trained, prompt, seed=None if seed is None else seed + sample, cached=cached, **how):
            print(text, end="", flush=True)
    print(flush=True)
