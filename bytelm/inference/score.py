"""The cost of texts: bits per byte, and the bits of each token.

A text is scored as val/bpb scores the validation text: in rows of up to max_seq_len tokens, in which each token is
predicted once from the tokens before it in its row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from bytelm.data.tokenizer import ByteTokenizer, Tokenizer
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.inference.load import Trained

Window = tuple[list[int], list[int]]
"""Inputs, up to max_seq_len tokens, and targets: the tokens that follow the last inputs."""

DARKEST_BITS = 8.0  # of a byte, in the picture of a text: a byte that costs as much as with equal probabilities


@dataclass(frozen=True)
class TextScore:
    """The cost of a text. In a notebook it is shown as the text, darker where it costs more.

    Attributes:
        bits_per_byte: Mean cost of a byte of UTF-8, in bits.
        tokens: The bytes of each token.
        bits: The cost of each token, in bits.
    """

    bits_per_byte: float
    tokens: list[bytes] = field(repr=False)
    bits: list[float] = field(repr=False)

    @property
    def byte_bits(self) -> list[float]:
        """The cost of each byte, in bits; the bytes of a token share its cost equally."""
        return [bits / len(piece) for piece, bits in zip(self.tokens, self.bits, strict=True) for _ in piece]

    def _repr_html_(self) -> str:
        marked = []
        for piece, bits in zip(self.tokens, self.bits, strict=True):
            alpha = min(bits / max(len(piece), 1) / DARKEST_BITS, 1.0)
            title, text = f"{bits:.2f} bits", escape(piece.decode("utf-8", errors="replace"))
            marked.append(f'<span title="{title}" style="background: rgba(220, 90, 40, {alpha:.2f})">{text}</span>')
        return (
            f'<p>{self.bits_per_byte:.4f} bits per byte</p><pre style="white-space: pre-wrap">{"".join(marked)}</pre>'
        )


def score_texts(trained: Trained, texts: Sequence[str], batch_size: int = 16) -> list[TextScore]:
    """Scores texts.

    Args:
        trained: The model.
        texts: The texts; each at least one byte.
        batch_size: Number of rows in a forward pass.

    Raises:
        ConfigError: A text is empty, or the tokenizer has no token from which the first token could be predicted.
    """
    tokenizer = trained.tokenizer
    start = first_token(tokenizer)
    tokens = [tokenizer.encode(text) for text in texts]
    if [] in tokens:
        raise ConfigError("text", "", "accepted: at least one byte")
    rows = [windows_of(of_text, start, trained.gpt.max_seq_len) for of_text in tokens]
    nats = iter(nats_of(trained.gpt, tokenizer, [row for of_text in rows for row in of_text], batch_size))
    scores = []
    for text, of_text, own in zip(texts, tokens, rows, strict=True):
        bits = [value / math.log(2) for _ in own for value in next(nats)]
        pieces = [tokenizer.decode_bytes([token]) for token in of_text]
        scores.append(TextScore(math.fsum(bits) / len(text.encode()), pieces, bits))
    return scores


def first_token(tokenizer: Tokenizer) -> int:
    """The token from which the first token of a text is predicted.

    Raises:
        ConfigError: The tokenizer has no such token.
    """
    if tokenizer.end_of_text is None:
        accepted = "accepted: one with an end-of-text token, which the first token of a text is predicted from"
        raise ConfigError("data.tokenizer", tokenizer.name, accepted)
    return tokenizer.end_of_text


def windows_of(tokens: Sequence[int], before: int, max_seq_len: int) -> list[Window]:
    """The rows of a text, in each of which up to max_seq_len tokens are predicted.

    Args:
        tokens: The text.
        before: The token before it.
        max_seq_len: Length of a row. The last row contains earlier tokens too, as many as there is room for.
    """
    inputs, windows = [before, *tokens[:-1]], []
    for start in range(0, len(tokens), max_seq_len):
        targets = list(tokens[start : start + max_seq_len])
        end = start + len(targets)
        windows.append((inputs[max(end - max_seq_len, 0) : end], targets))
    return windows


def nats_of(gpt: GPT, tokenizer: Tokenizer, windows: Sequence[Window], batch_size: int) -> list[list[float]]:
    """The cost of each target, in nats, window by window."""
    nats: list[list[float]] = [[]] * len(windows)
    for batch in longest_first(windows, batch_size):
        for i, predictions in zip(batch, predict(gpt, tokenizer, [windows[i] for i in batch]), strict=True):
            nats[i] = costs(predictions, windows[i][1]).tolist()
    return nats


def longest_first(windows: Sequence[Window], batch_size: int) -> Iterator[list[int]]:
    """Divides windows into batches for `predict`; yields the numbers of each batch.

    Windows of similar length are together, which keeps padding small; the longest come first, because a lack of memory
    then shows at once.
    """
    order = sorted(range(len(windows)), key=lambda i: len(windows[i][0]), reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.inference_mode()
def predict(gpt: GPT, tokenizer: Tokenizer, windows: Sequence[Window]) -> list[Tensor]:
    """Logits of the targets of each window, (n_targets, vocab_size), in one forward pass.

    Padding follows the end of a row; a causal network does not use it. Rows of bytes begin with a marker, as in
    training, also rows within a text.
    """
    rows = pad_sequence([torch.tensor(inputs) for inputs, _ in windows], batch_first=True)
    if isinstance(tokenizer, ByteTokenizer):
        rows[:, 0] = first_token(tokenizer)
    logits = gpt(rows.to(next(gpt.parameters()).device))
    of_rows = zip(windows, logits, strict=True)
    return [row[len(inputs) - len(targets) : len(inputs)].float() for (inputs, targets), row in of_rows]


def costs(predictions: Tensor, targets: Sequence[int]) -> Tensor:
    """The cost of each target in nats, (n,), given logits (n, vocab_size).

    The softmax includes the padding of the vocabulary, as in training: probability on tokens that never occur counts as
    loss.
    """
    return F.cross_entropy(predictions, torch.tensor(targets, device=predictions.device), reduction="none")
