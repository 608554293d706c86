"""Many experiments: run them, keep count of them, compare them.

* `python -m bytelm experiments` is runner.py, which takes runs from the queue in study.py;
* check.py tells what cannot run before it costs a run; job.py is one run as a process of its own;
* ledger.py reads what the runs' folders say; score.py is what they are ranked by;
* `python -m bytelm report` is report.py: tables, plots.py, and compare.py, which works out what was changed from a run
  to another, and what differs by more than noise;
* `python -m bytelm serve` is api.py (HTTP), service.py (the rules) and strangers.py (what a sent config may say).
"""
