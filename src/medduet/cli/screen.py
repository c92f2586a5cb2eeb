"""Lines and tables on the screen; names in them may be a stranger's, and have no codes for it."""

import sys
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from medduet.errors import one_line


def write(*lines: str, aligned: bool = False) -> None:
    """Print each line; `aligned` ones keep their spaces, and have no codes already."""
    for line in lines:
        sys.stdout.write((line if aligned else one_line(line)) + "\n")


def write_table(
    title: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Print a table of words, in the columns `left`, and numbers, in the columns `right`."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    sides = ["left"] * len(left) + ["right"] * len(right)
    text = tabulate(
        cells, [*left, *right], "simple", disable_numparse=True, colalign=sides if cells else None
    )
    sys.stdout.write(f"\n{one_line(title)}\n\n{text}\n\n")
