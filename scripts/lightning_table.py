"""Runs what Lightning's users write, cell by cell, and writes the table of docs/lightning.md from what came of it.

    python scripts/lightning_table.py            # writes the table
    python scripts/lightning_table.py --check    # compares it with the one in the page
    python scripts/lightning_table.py --only swa --only logger

A cell is a run of `python -m bytelm` with the options of the cell (lightning_cells/). Its effect is compared with
Lightning's documentation; what does not work must be rejected before training in one line. Prints the faults, and ends
with status 1 if there are any, or if the table is not the one in the page.
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_cells.document import difference, rendered, table_of, write_table
from lightning_cells.running import Bench
from lightning_cells.table import CELLS

from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.program import errors_in_one_line

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lightning.md"


def main() -> None:
    parser = CommandParser(prog=Path(__file__).name, description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument(
        "--only", action="append", default=[], help="part of the options of cells to run; writes nothing"
    )
    parser.add_argument("--jobs", type=PositiveInt, default=2, help="cells that run at the same time")
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:])
    only = [part.lower() for part in options.only]
    cells = [cell for cell in CELLS if not only or any(part in cell.written.lower() for part in only)]
    results = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for cell, result in zip(cells, pool.map(Bench(Path(folder)).run, cells), strict=True):
            results.append((cell, result))
            if result.is_fault or only:
                print(f"{result.outcome}: {cell.written} ({cell.documented}): {result.line[:1000]}", flush=True)
    faults = sum(result.is_fault for _, result in results)
    print(f"{len(cells)} cells, {faults} faults", file=sys.stderr)
    differing = False
    if not only and not faults:
        there = table_of(PAGE)
        here = rendered(results, there)
        if options.check:
            differing = here != there
            print(*difference(there, here), sep="\n")
        else:
            write_table(PAGE, here)
    sys.exit(1 if faults or differing else 0)


if __name__ == "__main__":
    main()
