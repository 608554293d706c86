"""The list of all cells."""

from lightning_cells import callbacks, loggers, plugins, profilers, strategies, trainer_options
from lightning_cells.cell import Cell

CELLS: tuple[Cell, ...] = tuple(
    cell for module in (trainer_options, callbacks, loggers, profilers, strategies, plugins) for cell in module.CELLS
)
