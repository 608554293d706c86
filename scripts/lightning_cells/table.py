"""The list of all cells."""

from lightning_cells import callbacks, loggers, plugins, precisions, profilers, strategies, trainer_options
from lightning_cells.cell import Cell

MODULES = (trainer_options, precisions, callbacks, loggers, profilers, strategies, plugins)
CELLS: tuple[Cell, ...] = tuple(cell for module in MODULES for cell in module.CELLS)
