"""What commands have computed, on the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from medduet.cli.screen import write, write_frame, write_table
from medduet.metrics.names import METRICS

if TYPE_CHECKING:
    from pandas import DataFrame

    from medduet.cli.doctor import Check
    from medduet.evaluation.ensemble import EnsembleRecord
    from medduet.experiments.grid import GridRecord
    from medduet.experiments.run import RunRecord
    from medduet.inference.folder import PredictRecord
    from medduet.reports.audit_page import AuditRecord
    from medduet.reports.compare import Comparison

Arguments = Mapping[str, Any]
_MOST_FAILED = 5
_ONE_RUN_EACH = "One run each: differences between seeds are not taken into account."


def _interval(row: Arguments, key: str, digits: int) -> str:
    interval = row.get(f"{key}_interval")
    if not interval or None in interval:
        return ""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _write_metrics(title: str, columns: Mapping[str, Arguments]) -> None:
    """Print the metrics of one split, of one network or several, with intervals of the last."""
    last = [*columns.values()][-1]
    rows = []
    for key, metric in METRICS.items():
        if all(isinstance(each.get(key), float) for each in columns.values()):
            values = [metric.format(each[key]) for each in columns.values()]
            rows.append((metric.name, *values, _interval(last, key, metric.digits)))
    calibration = last.get("calibration") or {}
    sets = calibration.get("sets", {}).get("0.90", {})
    for name, value, interval in (
        ("ECE, uncalibrated", calibration.get("ece_before"), ""),
        ("ECE, calibrated", calibration.get("ece_after"), ""),
        ("coverage of 90% sets", sets.get("coverage"), _interval(sets, "coverage", 3)),
        ("classes per 90% set", sets.get("size"), ""),
    ):
        if value is not None:
            rows.append((name, f"{value:.3f}", interval))
    write_table(title, ["metric"], [*columns, "95% interval"], rows)


def _run(record: RunRecord, arguments: Arguments) -> None:
    selected = record.metrics.get("validation_selected")
    for block in filter(None, (record.metrics, selected)):
        epochs = block["selected_epoch"]  # several of an ensemble
        epochs = ", ".join(map(str, epochs)) if isinstance(epochs, list) else epochs
        title = f"test split, n = {block['test']['n']}: epoch {epochs}"
        _write_metrics(f"{title}, {block['selection']}", {"value": block["test"]})
    if (missing := block.get("calibration_missing")) and "accuracy" in block["test"]:
        write(
            f"not calibrated on the validation split: {missing}; 'medduet calibrate' takes other "
            "images, and if the split is made, --data.fractions 0.6 0.2 0.2 puts more there"
        )


def _evaluation(metrics: Mapping[str, Any], arguments: Arguments) -> None:
    split, name = metrics["split"], metrics["data"]["name"]
    _write_metrics(f"{name}, {split}, n = {metrics[split]['n']}", {"value": metrics[split]})
    out = arguments["out"] or f"{arguments['path']}/evaluations/{name}-{split}"
    write(*metrics["data"]["info"].get("notes", ()), f"written: {out}")


def _stress(record: Mapping[str, Any], arguments: Arguments) -> None:
    from medduet.evaluation.stress import stress_folder
    from medduet.reports.stress import stress_table, write_stress_page

    table, n = stress_table(record).shown, record["clean"]["n"]
    table = table[table["severity"].isin(["0", "mean"])].drop(columns=["severity", "n"])
    title = f"{record['network']} on {record['data']['name']}, {record['split']}, n = {n}"
    write_frame(f"{title}: mean over five severities", table)
    folder = arguments["out"] or stress_folder(arguments["path"], record)
    write(f"report: {write_stress_page(record, folder)}")


def _ensemble(record: EnsembleRecord, arguments: Arguments) -> None:
    numbers = [str(number) for number in range(1, len(record.members) + 1)]
    for split, scores in record.scores.items():
        columns = dict(zip([*numbers, "ensemble"], scores, strict=True))
        _write_metrics(f"{record.images}, {split}, n = {scores[-1]['n']}", columns)
    write(*(f"{number}: {name}" for number, name in zip(numbers, record.members, strict=True)))


def _grid(record: GridRecord, arguments: Arguments) -> int:
    from medduet.reports.report import write_report

    failed, finished = record.count("failed"), record.count("finished")
    write(f"{finished} of {len(record.states)} cells finished: {record.path}")
    if finished:
        write(f"report: {write_report([record.path])}")
    if failed:
        write(
            f"failed: {failed} cells, see {record.path / 'cells'}",
            f"next: medduet benchmark --resume {record.path} --retry-failed",
        )
    return int(failed > 0)


def _comparison(comparison: Comparison, arguments: Arguments) -> None:
    from medduet.reports.report import paired_table

    table = paired_table(comparison.data, comparison.rows)
    write(f"a: {comparison.a}", f"b: {comparison.b}")
    shown = table.shown.drop(columns="method")
    shown = shown.rename(columns={"reference's mean": "a", "method's mean": "b"})
    write_frame(f"{comparison.data}, test split", shown.loc[:, (shown != "").any()])
    write(*comparison.skipped, _ONE_RUN_EACH, comparison.sentence)


def _predictions(record: PredictRecord, arguments: Arguments) -> int:
    from medduet.inference.folder import TABLE

    skipped = f", {record.skipped} files done before" if record.skipped else ""
    write(f"{record.images} images{skipped}: {record.path / TABLE}")
    write(*record.notes)
    if record.ood:
        write(f"out of distribution: {record.ood}, see the column warning")
    for name, reason in islice(record.broken.items(), _MOST_FAILED):
        write(f"failed: {name}: {reason}")
    if (more := len(record.broken) - _MOST_FAILED) > 0:
        write(f"and {more} more, see the column error")
    return int(bool(record.broken) and not record.images)


def _audit(record: AuditRecord, arguments: Arguments) -> int:
    audit = record.audit
    write(*record.summary, aligned=True)
    rows = [(each.severity, each.message) for each in audit.findings]
    write_table(f"audit of {audit.name}, {len(audit.images):,} images", ["", "finding"], [], rows)
    counts = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in audit.counts().items())
    write(f"{audit.name}: {counts}", f"report: {record.page}")
    if record.changes is not None:
        fix = arguments["fix"]
        write(record.changes, f"next: --data {arguments['data'].name} --data.split {fix}")
    return int(arguments["strict"] and bool(audit.leaks))


def _attached(table: DataFrame, arguments: Arguments) -> None:
    counts = table.groupby("split", sort=False)["state"].value_counts().unstack(fill_value=0)
    write_frame("masks", counts.astype(str).reset_index())
    view = {"crop": "the centre square of each picture"}.get(table.attrs["view"], "whole pictures")
    out = arguments["out"]
    write(f"view: {view}", f"written: {out}", f"image by image: {out.with_suffix('.csv')}")


def _checks(checks: Sequence[Check], arguments: Arguments) -> int:
    write_table("this machine", ["check", "state", ""], [], checks)
    return int(any(state == "bad" for _, state, _ in checks))


_RUN = """\
run: {result.path}
report: {result.path}/figures/predictions.png
next: medduet predict {result.path} IMAGES --out DIR"""
_TEXTS = {
    "demo": _RUN,
    "train": _RUN,
    "pretrain": """\
run: {result.path}
next: medduet train auto --data DATA --model.weights {result.path}""",
    "calibrate": """\
temperature {result.temperature:.3g}, fitted on {result.n} images
written: {arguments[out]}""",
    "ensemble": "written: {result.path}",
    "export": "{result}\nwritten: {result.path}",
    "push": "pushed, next: medduet.load('{result}')",
    "report": "report: {result}",
    "preview": "report: {result}",
    "zarr": "written: {result}\nnext: medduet train auto --data {result}",
}
_SHOWN: dict[str, Callable[..., int | None]] = {
    "demo": _run,
    "train": _run,
    "evaluate": _evaluation,
    "stress": _stress,
    "predict": _predictions,
    "ensemble": _ensemble,
    "benchmark": _grid,
    "compare": _comparison,
    "audit": _audit,
    "attach-masks": _attached,
    "doctor": _checks,
}


def show(name: str, result: Any, arguments: Arguments) -> int:
    """Print the result of a command; return the exit code."""
    code = _SHOWN[name](result, arguments) if name in _SHOWN else 0
    text = _TEXTS.get(name, "").format(result=result, arguments=arguments)
    write(*text.splitlines())
    return code or 0
