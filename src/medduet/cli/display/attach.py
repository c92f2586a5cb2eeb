"""What came of attaching masks, on the screen."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medduet.data.attach import Attached

_WINDOWS = {"whole": "the whole picture", "square": "its central square"}


def show_attached(attached: Attached) -> None:
    """Print how many images of each split got a mask, and why others did not."""
    table = Table(title="masks", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("split")
    for state in attached.counts():
        table.add_column(state, justify="right")
    for split in (*dict.fromkeys(attached.split.tolist()), None):
        table.add_row(split or "all", *map(str, attached.counts(split).values()))
    console = Console()
    console.print(table)
    view = attached.view
    if attached.counts()["matched"]:
        text = f"The images show {_WINDOWS[view.window]}; the likest filter is {view.filter}."
        console.print(text, highlight=False, soft_wrap=True)
