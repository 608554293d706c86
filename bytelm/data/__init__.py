"""Data: the common base (base.py), and the steps from text to the trainer's batches.

Bytes: their sources (corpora.py), how they are cut into rows (rows.py), the order of the rows (orders.py), and batches
(bytes.py). Tokens made in advance: their files (shard_file.py) and batches (shards.py). Documents that are encoded
while a run trains: their files (documents.py), rows (packing.py), the process that packs them (pack_worker.py), its
batches (packed_rows.py), and the data (packed.py). Tokenizers: read (tokenizer.py) and trained (train_tokenizer.py).
"""
