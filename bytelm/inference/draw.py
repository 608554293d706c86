"""Draws tokens from a network's predictions, one after the other; for several sequences at once.

A cache keeps the keys and values of earlier tokens (KVCache, bytelm/parts/attention.py). When a sequence exceeds
max_seq_len, its last part starts a new row. The tokens are the same with and without the cache.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bytelm.errors import ConfigError
from bytelm.gpt import GPT, Cache

MAX_SEED = 2**64 - 1  # of torch's generators


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
    how = (max_new_tokens, temperature, top_k, top_p, cached, vocab_size, stop, n_keep)
    for _, token in generate_batch(gpt, [tokens], [seed], *how):
        yield token


def generate_batch(
    gpt: GPT,
    sequences: Sequence[Tensor],
    seeds: Sequence[int | None],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cached: bool = True,
    vocab_size: int | None = None,
    stop: int | None = None,
    n_keep: int = 0,
    ends: Callable[[int, int], bool] | None = None,
) -> Iterator[tuple[int, int]]:
    """Draws the tokens that follow several sequences, in common forward passes.

    Each sequence continues as `generate` would continue it, up to rounding: kernels for several rows can round
    differently. All sequences have the same length in a pass, so every part works as with one sequence. The passes
    begin with the length of the shortest sequence; a longer one provides its own tokens until they are used up.
    Sequences of similar length therefore take the least time. Ended ones leave the batch when they are half of it.

    Args:
        gpt: See `generate`.
        sequences: The sequences to continue, each at least one token, (T_i,).
        seeds: Seed of the draws of each sequence.
        max_new_tokens: Maximum number of tokens to draw for each sequence.
        temperature: See `generate`.
        top_k: See `generate`.
        top_p: See `generate`.
        cached: See `generate`.
        vocab_size: See `generate`.
        stop: See `generate`.
        n_keep: See `generate`.
        ends: Called with the number of a sequence and each token drawn for it; true ends the sequence.

    Yields:
        The number of a sequence, and a token drawn for it.
    """
    device = next(gpt.parameters()).device
    generators = [_generator(seed) for seed in seeds]
    windows = [_fitting(sequence.tolist(), gpt.max_seq_len, n_keep) for sequence in sequences]
    n_drawn = [0] * len(windows)
    active = [*range(len(windows))] if max_new_tokens else []
    in_batch: list[int] = []
    while active:
        length = min(len(windows[i]) for i in active)
        if not in_batch or length > gpt.max_seq_len or 2 * len(active) <= len(in_batch):
            in_batch = [*active]
            windows = [_fitting(window, gpt.max_seq_len, n_keep) for window in windows]
            length = min(len(windows[i]) for i in active)
            tokens = torch.zeros(len(in_batch), 0, dtype=torch.long, device=device)
            cache = gpt.new_cache() if cached else None
        filled = tokens.shape[1]
        new = torch.tensor([_piece(windows[i], filled, length) for i in in_batch], device=device)
        tokens = torch.cat([tokens, new], dim=1)
        for i, logits in zip(in_batch, _next_logits(gpt, tokens, cache), strict=True):
            if i not in active or len(windows[i]) > length:
                continue
            token = draw(logits[:vocab_size], temperature, top_k, top_p, generators[i])
            if token == stop:
                active.remove(i)
                continue
            yield i, token
            windows[i].append(token)
            n_drawn[i] += 1
            if n_drawn[i] == max_new_tokens or (ends is not None and ends(i, token)):
                active.remove(i)


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Divides sequences into batches for `generate_batch`, the shortest first; returns the numbers of each batch.

    Args:
        lengths: Length of each sequence.
        batch_size: Maximum number of sequences of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


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
    """Logits after the last of tokens (B, T), (B, V); on the CPU, where a seed draws the same for all devices."""
    logits = gpt(tokens) if cache is None else gpt(tokens, cache)
    return logits[:, -1].float().cpu()


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        try:
            generator.manual_seed(seed)
        except ValueError as error:
            raise ConfigError("seed", seed, f"accepted: a whole number from 0 to {MAX_SEED}") from error
    return generator


def _fitting(window: list[int], max_seq_len: int, n_keep: int) -> list[int]:
    """A window that exceeds max_seq_len, shortened to its first n_keep tokens and its last half."""
    if len(window) <= max_seq_len:
        return window
    n_keep = min(n_keep, max_seq_len - 1)
    n_last = max(max_seq_len // 2 - n_keep, 1)
    return [*window[:n_keep], *window[-n_last:]]


def _piece(window: list[int], start: int, end: int) -> list[int]:
    """Tokens from `start` to `end`; zeros after the last one, for a sequence that has ended."""
    piece = window[start:end]
    return piece + [0] * (end - start - len(piece))
