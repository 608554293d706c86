"""Data: the common base (base.py), and the steps from text to the trainer's batches.

Bytes: their sources (corpora.py), how they are cut into rows (rows.py), the order of the rows (orders.py), and batches
(bytes.py). Tokens made in advance: their files (shard_file.py) and batches (shards.py).
"""
