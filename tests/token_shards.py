"""The tiny experiment on token shards: they are made here, without a known tokenizer."""

from pathlib import Path

import numpy as np

from bytelm.data.shard_file import write_shard

CONFIG = """
model:
  gpt: {vocab_size: 320, d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 16}
  optimizer: {class_path: AdamW, init_args: {lr: 3e-3}}
data:
  class_path: TokenShards
  init_args: {path: tokens, batch_size: 4, seq_len: 16, vocab_size: 300, tokenizer: null, eval_tokens: 256}
trainer: {accelerator: cpu, devices: 1, gradient_clip_val: 1.0, log_every_n_steps: 1}
time_budget: {limit: 4 steps}
samples: {max_new_tokens: 0}
"""


def train_on_tokens():
    """Puts shards into tokens/, and in place of tiny.yaml one that trains on them."""
    Path("tokens").mkdir()
    rng = np.random.default_rng(0)
    for name in ("train_1", "train_2", "val_1"):
        write_shard(f"tokens/text_{name}.bin", rng.integers(1, 256, 2_000))
    Path("tiny.yaml").write_text(CONFIG)
