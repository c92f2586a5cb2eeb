"""What commands on data sets did, on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from medduet.cli.data import AuditRecord
from medduet.cli.display.screen import make_table, write, write_table
from medduet.data.attach import Attached

_COLOURS = {"leak": "bold red", "warning": "yellow", "note": ""}
_WINDOWS = {"whole": "the whole picture", "square": "its central square"}


def show_audit(record: AuditRecord, arguments: Mapping[str, Any]) -> int:
    """Print the findings, the worst first; 1 if leaks are an error and there are some."""
    audit = record.audit
    table = make_table(f"audit of {audit.name}, {len(audit.images):,} images", ["", "finding"])
    for finding in audit.findings:
        # As text: a name of a class is from strangers, and may look like markup.
        table.add_row(Text(finding.severity, _COLOURS[finding.severity]), Text(finding.message))
    if audit.findings:
        write_table(table)
    counts = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in audit.counts().items())
    write(f"{audit.name}: {counts}", f"report: {record.page}")
    if record.changes is not None:
        changes = "; ".join(record.changes) or "nothing to clean"
        fix = arguments["fix"]
        write(changes, f"next: --data {arguments['data'].name} --data.split {fix}")
    return int(arguments["strict"] and bool(audit.leaks))


def show_attached(attached: Attached, arguments: Mapping[str, Any]) -> None:
    """Print how many images of each split got a mask, and why others did not."""
    counts = attached.counts()
    table = make_table("masks", ["split"], list(counts.columns))
    for split, row in counts.iterrows():
        table.add_row(str(split), *map(str, row))
    write_table(table)
    view, out = attached.view, arguments["out"]
    if counts.loc["all", "matched"]:
        write(f"view: {_WINDOWS[view.window]}, resized by the {view.filter} filter")
    write(f"written: {out}", f"image by image: {out.with_suffix('.csv')}")


def show_zarr(out: Path, arguments: Mapping[str, Any]) -> None:
    """Print where the store is."""
    write(f"written: {out}", f"next: medduet train --data {out}")
