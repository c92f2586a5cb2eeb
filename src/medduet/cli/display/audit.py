"""An audit on the screen."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medduet.data.audit.findings import Audit

_COLOURS = {"leak": "bold red", "warning": "yellow", "note": ""}


def show_audit(audit: Audit, page: Path) -> None:
    """Print the findings, the worst first, and where the page is."""
    console = Console()
    table = Table(
        title=Text(f"audit of {audit.name}, {len(audit.images):,} images"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("finding")
    for finding in audit.findings:
        # As text: a name of a class is from the data, and may look like markup.
        table.add_row(Text(finding.severity, _COLOURS[finding.severity]), Text(finding.message))
    if audit.findings:
        console.print(table)
    counts = [f"{n} {name}{'s' * (n != 1)}" for name, n in audit.counts().items()]
    for text in (f"{audit.name}: {', '.join(counts)}", f"report: {page}"):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
