"""Many runs as one page, with its tables and figures as files beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from medduet._version import __version__
from medduet.errors import ConfigError, closest
from medduet.reports import sections, tables
from medduet.reports.calibration import calibration
from medduet.reports.grouping import Runs, group_runs
from medduet.reports.words import answer
from medduet.reports.writer import Part, Writer
from medduet.runs.reader import FinishedRun, find_runs
from medduet.utils.files import sweep, write_text
from medduet.utils.locks import exclusive
from medduet.utils.parsing import misread

_MARK = '<meta name="generator" content="medduet report">'


def write_report(
    paths: Sequence[str | Path],
    out: Path | None = None,
    *,
    reference: str | None = None,
    samples: bool = True,
) -> Path:
    """Write one page on all finished runs in and under some folders; return its path.

    The folder gets ``index.html``, which needs no other file and no network, ``tables/`` (CSV,
    Markdown, LaTeX) and ``figures/`` (PNG, SVG). Only run folders are read: no data, no network,
    no GPU. Every number is of the validation-selected epoch unless it says ``test-selected``.

    Args:
        paths: folders with runs, such as that of a grid.
        out: folder to write; ``None`` for ``report`` in the first of `paths`.
        reference: the method that others are tested against; ``None`` for vovunet_var, or the
            first by name.
        samples: whether sheets of test images are shown.

    Raises:
        MissingFileError: there is no finished run.
        ConfigError: a reference that is not there.
        DataError: the files of a run can't be read.
    """
    found = find_runs(paths)
    with misread(f"a run in {', '.join(map(str, paths))}"):
        return _report(found, paths, out, reference, samples)


def _report(
    found: Sequence[FinishedRun],
    paths: Sequence[str | Path],
    out: Path | None,
    reference: str | None,
    samples: bool,
) -> Path:
    runs = group_runs(found, reference)
    if reference is not None and reference not in runs.methods:
        raise ConfigError(f"unknown --reference '{reference}': {closest(reference, runs.methods)}")
    out = out or Path(paths[0]) / "report"
    with exclusive(out / ".lock", wait=True):  # several processes may end one grid
        return _write(out, runs, paths, samples)


def _write(out: Path, runs: Runs, paths: Sequence[str | Path], samples: bool) -> Path:
    page = out / "index.html"
    sweep(page)
    for folder in ("tables", "figures"):
        sweep(out / folder)
    if page.is_file() and _MARK in page.read_text("utf-8", errors="replace"):
        for folder in ("tables", "figures"):  # of a report before this one
            shutil.rmtree(out / folder, ignore_errors=True)
    writer, cells = Writer(out), tables.measure_cells(runs)
    compared = sections.compare(runs)
    parts = [
        answer(runs, compared, paths),
        *sections.scores(runs, cells, writer),
        sections.selection(runs, writer),
        sections.paired(runs, compared, writer),
        sections.over_sets(runs, cells, writer),
        sections.training(runs, writer),
        sections.confusion(runs, writer),
        calibration(runs, writer),
        sections.samples(runs, writer) if samples else Part("Samples"),
        sections.costs(runs, cells, writer),
        sections.provenance(runs, paths, writer),
    ]
    parts = [part for part in parts if part.text or part.tables or part.figures]
    write_text(page, render("report.html", title=_title(runs), parts=parts, runs=runs))
    return page


def _title(runs: Runs) -> str:
    sets = runs.datasets[0] if len(runs.datasets) == 1 else f"{len(runs.datasets)} data sets"
    kinds = runs.methods[0] if len(runs.methods) == 1 else f"{len(runs.methods)} methods"
    return f"{kinds} on {sets}"


def render(template: str, **values: Any) -> str:
    """Return a template of this folder filled with `values`, which are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medduet.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values, version=__version__)
