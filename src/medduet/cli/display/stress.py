"""A stress test on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from medduet.metrics.names import METRICS

_SHARES = {"be": "BE / baseline", "rbe": "rBE / baseline"}
_COLUMNS = {
    key: METRICS[key].name for key in ("accuracy", "balanced_error", "dice_nonempty", "ece")
} | _SHARES


def show_stress(record: Mapping[str, Any]) -> None:
    """Print the means of each corruption over its severities."""
    data, clean = record["data"], record["clean"]
    rows = {"clean": clean}
    rows |= {name: of | of["mean"] for name, of in record["corruptions"].items()}
    rows["mean"] = record | record["mean"]
    shown = [name for name in _COLUMNS if isinstance(rows["mean"].get(name), float)]
    table = Table(
        title=f"{record['network']} on {data['name']}, {record['split']}, n = {clean['n']}: "
        "mean over five severities",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("corruption", no_wrap=True)
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right")
    for name, row in rows.items():
        values = (row.get(key) for key in shown)
        table.add_row(name, *("" if value is None else f"{value:.3f}" for value in values))
    Console().print(table)
