"""Trains tokenizers: byte-level BPE of a vocabulary's size, from texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bytelm.data.tokenizer import END_OF_TEXT, INSTALL
from bytelm.data.tokenizer_json import BYTE_OF
from bytelm.errors import DataError

Pattern = Literal["gpt2", "gpt4"]
# tiktoken's cl100k_base, with two digits in place of three, and without possessive quantifiers, which tokenizers lacks.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterator[str], vocab_size: int, file: Path, pattern: Pattern = "gpt2") -> None:
    """Learns a byte-level BPE like GPT-2's (Radford et al. 2019) from texts, and writes it as a tokenizer.json.

    Args:
        texts: Read once, and not kept.
        vocab_size: Number of tokens, including the 256 bytes and <|endoftext|>; the result is smaller if the texts
            yield fewer.
        file: File to write.
        pattern: Regular expression that cuts texts into pieces, which no token crosses. `gpt2`: GPT-2's; `gpt4`:
            GPT-4's, with numbers of at most two digits.

    Raises:
        DataError: The vocabulary is too small, or tokenizers is not installed.
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise DataError("train_tokenizer", vocab_size, f"it needs tokenizers; {INSTALL}") from error
    if vocab_size <= len(BYTE_OF):
        raise DataError("train_tokenizer", vocab_size, f"accepted: from {len(BYTE_OF) + 1}, the bytes and end of text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern == "gpt4":
        pieces = pre_tokenizers.Split(Regex(GPT4), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=[*BYTE_OF],
        show_progress=False,  # it would be written to standard output
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(file))
