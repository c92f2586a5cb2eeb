"""An audit on the screen."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medduet.data.audit.findings import SEVERITIES, Audit

_COLOURS = {"leak": "bold red", "warning": "yellow", "note": ""}


def show_audit(audit: Audit, page: Path) -> None:
    """Print the findings, the worst first, and where the page is."""
    console = Console()
    table = Table(
        title=Text(f"audit of {audit.name}, {len(audit.ids):,} images"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("finding")
    for finding in audit.findings:
        # As text: a name of a class is from strangers, and may look like markup.
        table.add_row(Text(finding.severity, _COLOURS[finding.severity]), Text(finding.sentence))
    if audit.findings:
        console.print(table)
    counts = {
        severity: sum(finding.severity == severity for finding in audit.findings)
        for severity in SEVERITIES
    }
    said = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in counts.items())
    for text in (f"{audit.name}: {said}", f"look at: {page}"):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
