"""A comparison of runs on the screen."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medduet.reports.compare import Comparison, Row
from medduet.reports.verdict import shown_p

_PIPED_WIDTH = 140  # columns, where no terminal says how many it has


def show_comparison(comparison: Comparison) -> None:
    """Print the table of both runs, what is left out of it, and the sentence."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    names = (("a", comparison.a, comparison.path_a), ("b", comparison.b, comparison.path_b))
    for letter, name, path in names:
        console.print(f"{letter}: {name}  {path}", highlight=False, soft_wrap=True, markup=False)
    title = f"{comparison.data}, {comparison.split}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in ("a", "b", "a - b", "95% interval", "effect", "n", "test", "p", "p Holm"):
        table.add_column(head, justify="left" if head == "test" else "right")
    for row in comparison.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for text in (*comparison.left_out, *comparison.notes, comparison.sentence):
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def _cells(row: Row) -> list[str]:
    places = 5 if row.measure == "MSE" else 4

    def number(value: float, sign: str = "") -> str:
        return "" if math.isnan(value) else f"{value:{sign}.{places}f}"

    return [
        row.measure,
        number(row.a),
        number(row.b),
        number(row.difference, "+"),
        " to ".join(filter(None, (number(bound, "+") for bound in row.interval))),
        "" if math.isnan(row.effect) else f"{row.effect_name} {row.effect:.2f}",
        str(row.n),
        row.test,
        *("" if math.isnan(p) else shown_p(p).removeprefix("= ") for p in (row.p, row.p_holm)),
    ]
