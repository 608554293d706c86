"""Tokenizers as a tokenizer.json, the file that Hugging Face's libraries read.

Byte-level BPE is written in GPT-2's alphabet of 256 printable characters, one for each byte: bytes that are printable
in Latin-1 are written as themselves, and the others as the characters from 256 on.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE}
BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))}
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}

PROBE = (
    "To be, or not to be: that's the QUESTION -- I'll, we've, don't, they'RE 1 22 333 4444 x=1;\n\n  two  spaces \t tab"
    "s\r\nlines \n \n\nna\u00efve caf\u00e9 \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600\U0001f44d"
    "\U0001f3fd \u00bd\u2167 __init__(self) \u00a0\u2003\u3000end  \n "
)  # text that tokenizers cut in different ways


def of_bytes(start: int) -> str:
    """Makes a tokenizer whose tokens are bytes.

    Args:
        start: The byte that marks the beginning of a text. It is a special token: it decodes to nothing.
    """
    # The special token's text is the marker itself: a text that contains this byte has the same token as in bytelm. Its
    # letter in the alphabet is left out; otherwise two texts would have one token.
    special = chr(start)
    vocab = {special if byte == start else letter: byte for byte, letter in CHARACTER_OF.items()}
    return _dump(_bpe(vocab, [], _byte_level(use_regex=False)), {special: start})


def of_ranks(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> str:
    """Makes a byte-level BPE from one of tiktoken's.

    Args:
        ranks: The number of each token's bytes, which is also its rank among merges.
        pattern: Regular expression that cuts text into pieces.
        special: Special tokens and their numbers.
    """
    # tokenizers' regular expressions lack tiktoken's possessive quantifiers, and there `$` matches the end of a line.
    pattern = re.sub(r"(?<=[+*?])\+|(?<=\d\})\+", "", pattern).replace("$", r"\z")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    before = {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}
    vocab = {_letters(token): number for token, number in ranks.items()} | dict(special)
    merges = [[_letters(left), _letters(right)] for left, right in _merges(ranks)]
    model = _bpe(vocab, merges, before)
    model["model"]["ignore_merges"] = True  # a piece that is a token is encoded as that token, without merges
    return _dump(model, special)


def of_characters(numbers: Mapping[str, int]) -> str:
    """Makes a tokenizer whose tokens are characters.

    Args:
        numbers: The number of each character.
    """
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    # Without a token for unknown characters, tokenizers raises an error; it drops no text.
    model = {"type": "WordLevel", "vocab": dict(numbers), "unk_token": "[UNK]"}
    return _dump({"pre_tokenizer": split, "decoder": {"type": "Fuse"}, "model": model}, {})


def of_file(content: str) -> str:
    """Returns a tokenizer.json as bytelm uses it: it does not cut or pad texts, and adds no tokens around them."""
    values: dict[str, Any] = json.loads(content)
    values["truncation"] = values["padding"] = None
    if (values.get("post_processor") or {}).get("type") != "ByteLevel":  # it changes only offsets
        values["post_processor"] = None
    return json.dumps(values, ensure_ascii=False)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], before: dict[str, Any]) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": merges,
    }
    return {"pre_tokenizer": before, "decoder": _byte_level(use_regex=True), "model": model}


def _dump(parts: Mapping[str, Any], special: Mapping[str, int]) -> str:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = sorted(special.items(), key=lambda item: item[1])
    rest = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    added = [{"id": number, "content": text, **flags} for text, number in tokens]
    return json.dumps({**rest, "added_tokens": added, **parts}, ensure_ascii=False)


def _letters(token: bytes) -> str:
    return "".join(CHARACTER_OF[byte] for byte in token)


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Returns the two parts that each token of several bytes is merged from, in the order of ranks.

    A token's parts are the last two tokens that its bytes are merged into by the lower ranks. If more than two tokens
    are left, no merge makes the token.
    """
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, math.inf) for left, right in itertools.pairwise(parts)]
            if (lowest := min(pairs)) >= rank:
                break
            at = pairs.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found
