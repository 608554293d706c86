"""Data: where the bytes come from (corpora.py), how they become rows (rows.py) and reach the trainer (bytes.py)."""
