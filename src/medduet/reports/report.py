"""The report on many runs: one page, with its tables and figures as files beside it."""

from collections.abc import Sequence
from pathlib import Path

from medduet.errors import ConfigError, closest
from medduet.reports import details, sections
from medduet.reports.compare import differences
from medduet.reports.grouping import group_runs, measure_all
from medduet.reports.page import Section, say, write_page
from medduet.runs.folder import find_runs
from medduet.utils.locks import exclusive, result_folder
from medduet.utils.parsing import misread


def write_report(
    paths: Sequence[str | Path],
    out: Path | None = None,
    *,
    reference: str | None = None,
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

    Raises:
        MissingFileError: there is no finished run.
        ConfigError: no such reference.
        DataError: the files of a run can't be read.
    """
    finished = find_runs(paths)
    out = result_folder(out) if out else result_folder(Path(paths[0]), "report")
    with misread(f"a run in {', '.join(map(str, paths))}"):
        runs = group_runs(finished, reference)
        if reference is not None and reference not in runs.methods:
            hint = closest(reference, runs.methods)
            raise ConfigError(f"unknown --reference '{reference}': {hint}")
        with exclusive(out / ".lock", wait=True):  # several processes may finish one grid
            measured, epochs = measure_all(runs), details.epochs_of(runs)
            compared = {dataset: differences(runs.of(dataset)) for dataset in runs.datasets}
            compared = {dataset: rows for dataset, rows in compared.items() if rows}
            tests = [sections.paired_table(*each) for each in compared.items()]
            contents = [
                sections.summary(runs, compared, [Path(path) for path in paths]),
                *sections.scores(runs, measured),
                sections.selection(runs),
                Section("Paired tests", tables=tests),
                sections.over_datasets(measured),
                details.training(runs, epochs),
                details.calibration(runs),
                details.costs(runs, epochs),
                details.provenance(runs),
            ]
            return write_page(out, say("title", runs), contents, "medduet report")
