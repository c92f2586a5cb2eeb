"""The result of attaching masks, on the screen."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medduet.data.attach import Attached

_WINDOWS = {"whole": "the whole picture", "square": "its central square"}


def show_attached(attached: Attached) -> None:
    """Print how many images of each split got a mask, and why others did not."""
    table, counts = (
        Table(title="masks", title_justify="left", box=SIMPLE_HEAD, pad_edge=False),
        attached.counts(),
    )
    table.add_column("split")
    for state in counts.columns:
        table.add_column(state, justify="right")
    for split, row in counts.iterrows():
        table.add_row(str(split), *map(str, row))
    console = Console()
    console.print(table)
    view = attached.view
    if counts.loc["all", "matched"]:
        text = f"The images show {_WINDOWS[view.window]}, reduced by a {view.filter} filter."
        console.print(text, highlight=False, soft_wrap=True)
