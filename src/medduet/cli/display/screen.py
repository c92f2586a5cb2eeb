"""Lines and tables on the screen, as all results use them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 140  # columns, where no terminal says how many it has


def write(*lines: str) -> None:
    """Print each line as it is: names in it may be a stranger's, and look like markup."""
    console = Console()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def write_table(table: Table) -> None:
    """Print a table; into a file or pipe as wide as it needs."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(table)


def make_table(title: str, left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """Return a table whose first columns hold text and whose last ones hold numbers."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table
