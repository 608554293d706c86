"""Documents for tests of packing, in a folder like autoresearch's ~/.cache/autoresearch."""

import pickle
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import tiktoken
import torch

WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n", "naïve", "你好", "😀"]
PAIRS = [b"to", b"be", b"or", b"no", b"th", b"he", b"is", b" t", b" b", b"qu", b"es", b"\xc3\xaf"]
PATTERN = r" ?\p{L}+|\s+|[^\s\p{L}]+"
SPECIAL = [f"<|reserved_{i}|>" for i in range(4)]


def texts(n, seed=0, longest=60):
    """Documents of up to `longest` words, among them empty ones."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randrange(longest))) for _ in range(n)]


def encoding():
    """Its 256 bytes, some pairs of them, and autoresearch's special tokens; some tokens are parts of characters."""
    ranks = {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *PAIRS])}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL)}
    return tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def write_parquet(file, documents, row_group=70, column="text"):
    pyarrow.parquet.write_table(pyarrow.table({column: documents}), file, row_group_size=row_group)


def write_cache(folder, n_train=(150, 90), n_val=120, longest=60):
    """Writes the folder: shards of documents, the last of which validates, and a pickled tokenizer."""
    data, tokenizer = Path(folder, "data"), Path(folder, "tokenizer")
    for each in (data, tokenizer):
        each.mkdir(parents=True)
    for number, n in enumerate(n_train):
        write_parquet(data / f"shard_{number:05d}.parquet", texts(n, number, longest))
    write_parquet(data / "shard_06542.parquet", texts(n_val, 99, longest))
    its = encoding()
    (tokenizer / "tokenizer.pkl").write_bytes(pickle.dumps(its))
    sizes = [
        0 if token in its._special_tokens.values() else len(its.decode([token]).encode())
        for token in range(its.n_vocab)
    ]
    torch.save(torch.tensor(sizes, dtype=torch.int32), tokenizer / "token_bytes.pt")
    return folder
