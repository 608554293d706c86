"""What people write who use Lightning's options, callbacks, loggers, profilers, strategies and plugins, cell by cell.

scripts/lightning_table.py runs the cells and writes docs/lightning.md's table.
"""
