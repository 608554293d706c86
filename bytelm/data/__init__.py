"""Data: what all kinds share (base.py), and how text reaches the trainer.

As bytes: where they come from (corpora.py), how they become rows (rows.py), in which order (orders.py), and batches
(bytes.py). As tokens that were made beforehand: their files (shard_file.py), and batches of them (shards.py).
"""
