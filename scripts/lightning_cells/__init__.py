"""Cells: uses of Lightning's options, callbacks, loggers, profilers, strategies and plugins, one use a cell.

scripts/lightning_table.py runs the cells and writes docs/lightning.md's table.
"""
