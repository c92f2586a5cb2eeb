"""Lines and tables on the screen; names in them may be a stranger's, and are never markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 140  # columns, where no terminal says how many it has


def write(*lines: str) -> None:
    """Print each line as it is."""
    console = Console()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def write_table(
    title: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str | Text]]
) -> None:
    """Print a table whose first columns are `left` and whose last ones are numbers.

    Into a file or pipe it is as wide as it needs.
    """
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(table)
