"""Runs and compares many experiments.

* `python -m bytelm experiments` is runner.py, which takes runs from the queue (study.py); task.py plans the runs;
* check.py finds configs that cannot run; job.py is one run as a separate process;
* `python -m bytelm report` is report/; comparison.py finds the changes between runs, and significant differences;
* `python -m bytelm serve` is service/: api.py (HTTP), match.py (the rules) and match_folder.py (its files).
"""
