"""What scripts/benchmark.py measures within one run: its start (startup.py), and its share of the peak (peak.py)."""
