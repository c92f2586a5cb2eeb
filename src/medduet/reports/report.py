"""The report on many runs: one page, with its tables and figures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medduet.errors import ConfigError, closest
from medduet.reports import details, sections
from medduet.reports.grouping import Runs, group_runs
from medduet.reports.page import write_page
from medduet.runs.folder import RunFolder, find_runs
from medduet.utils.locks import exclusive
from medduet.utils.parsing import misread


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
        samples: whether test images with their predictions are shown.

    Raises:
        MissingFileError: there is no finished run.
        ConfigError: no such reference.
        DataError: the files of a run can't be read.
    """
    if not paths:
        raise ConfigError("expected folders of runs: medduet report DIR ...")
    finished = find_runs(paths)
    with misread(f"a run in {', '.join(map(str, paths))}"):
        return _report(finished, paths, out, reference, samples)


def _report(
    finished: Sequence[RunFolder],
    paths: Sequence[str | Path],
    out: Path | None,
    reference: str | None,
    samples: bool,
) -> Path:
    runs = group_runs(finished, reference)
    if reference is not None and reference not in runs.methods:
        raise ConfigError(f"unknown --reference '{reference}': {closest(reference, runs.methods)}")
    out = out or Path(paths[0]) / "report"
    with exclusive(out / ".lock", wait=True):  # several processes may finish one grid
        measured, compared = sections.measure_all(runs), sections.compare_all(runs)
        contents = [
            sections.summary(runs, compared, paths),
            *sections.scores(runs, measured),
            sections.selection(runs),
            sections.paired(runs, compared),
            sections.over_datasets(runs, measured),
            details.training(runs),
            details.confusion(runs),
            details.calibration(runs),
            *([details.samples(runs)] if samples else []),
            details.costs(runs, measured),
            details.provenance(runs),
        ]
        return write_page(out, _title(runs), contents, "medduet report")


def _title(runs: Runs) -> str:
    sets = runs.datasets[0] if len(runs.datasets) == 1 else f"{len(runs.datasets)} data sets"
    methods = runs.methods[0] if len(runs.methods) == 1 else f"{len(runs.methods)} methods"
    return f"{methods} on {sets}"
