"""What was written where, on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medduet.cli.display.screen import write
from medduet.inference.export import ExportRecord
from medduet.inference.folder import PredictRecord
from medduet.inference.results import TABLE
from medduet.uncertainty.calibration import Calibration

_MOST_FAILED = 5


def show_predictions(record: PredictRecord, arguments: Mapping[str, Any]) -> int:
    """Print how many images were predicted, and which were not; 1 if none was."""
    skipped = f", {record.skipped} files done before" if record.skipped else ""
    write(f"{record.images} images{skipped}: {record.path / TABLE}")
    if record.ood:
        write(f"out of distribution: {record.ood}, see the column warning")
    failed = [f"failed: {name}: {reason}" for name, reason in record.broken.items()]
    write(*failed[:_MOST_FAILED])
    if len(failed) > _MOST_FAILED:
        write(f"and {len(failed) - _MOST_FAILED} more, see the column error")
    return int(bool(failed) and not record.images)


def show_calibration(calibration: Calibration, arguments: Mapping[str, Any]) -> None:
    """Print the temperature."""
    write(
        f"temperature {calibration.temperature:.3g}, fitted on {calibration.n} images",
        f"written: {arguments['out']}",
    )


def show_export(record: ExportRecord, arguments: Mapping[str, Any]) -> None:
    """Print how far the export is from torch."""
    write(f"compared with torch on {record.images}: {record.agreement}")
    write(f"written: {record.path}")


def show_pushed(address: str, arguments: Mapping[str, Any]) -> None:
    """Print how the network is loaded from the hub."""
    write(f"pushed, next: medduet.load('{address}')")


def show_page(page: Path, arguments: Mapping[str, Any]) -> None:
    """Print where the page or figure is."""
    write(f"report: {page}")
