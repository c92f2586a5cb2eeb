"""Two finished runs on the same images, measure by measure, with paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medduet.errors import ConfigError, DataError
from medduet.metrics.classification import accuracy
from medduet.metrics.intervals import Interval
from medduet.metrics.paired import McNemar, OverImages, mcnemar, over_images
from medduet.metrics.repeats import holm
from medduet.metrics.roc import DeLong, delong
from medduet.reports.verdict import EVIDENCE, verdict
from medduet.runs.reader import FinishedRun, SplitPredictions, open_run
from medduet.types import UNKNOWN_LABEL
from medduet.utils.files import write_json
from medduet.utils.parsing import misread

_ONE_EACH = (
    "One run each: this compares two trained networks; what other seeds would give, it can't say."
)
_JUDGE_AND_PARTY = "The validation split selected both epochs, so both values are too good."


@dataclass(frozen=True)
class Row:
    """One measure of both runs.

    Attributes:
        measure: its name.
        a: of the first run.
        b: of the second run.
        difference: a minus b.
        interval: of the difference, 95%; not corrected for the other rows.
        effect_name: what the effect size is.
        effect: its value.
        test: name of the paired test.
        p: of the test, two-sided.
        p_holm: after Holm's correction for all rows.
        n: images.
    """

    measure: str
    a: float
    b: float
    difference: float
    interval: Interval
    effect_name: str
    effect: float
    test: str
    p: float
    n: int
    p_holm: float = float("nan")


@dataclass(frozen=True)
class Comparison:
    """What two runs do on the same images.

    Attributes:
        a: name of the first run: what tells it from the second.
        b: name of the second run.
        path_a: its folder.
        path_b: likewise.
        data: name of the data set.
        split: the split.
        rows: the measures that both runs have.
        left_out: measures that can't be compared, and why.
        notes: what to keep in mind.
        sentence: what it comes to, in one sentence on the first row.
    """

    a: str
    b: str
    path_a: str
    path_b: str
    data: str
    split: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


@misread("a file of these runs")
def compare(
    run_a: str | Path,
    run_b: str | Path,
    split: Literal["val", "test"] = "test",
    *,
    out: Path | None = None,
) -> Comparison:
    """Compare two finished runs on the same images, with paired tests.

    Accuracy by McNemar's test (for multi-label sets by permutation), AUC by DeLong's, Dice and
    reconstruction error by sign-flip permutation; Holm's correction for all of them. The epochs are
    those that validation selected.

    Args:
        run_a: the folder of a run.
        run_b: of another, on the same data.
        split: ``"test"`` or ``"val"``.
        out: write the numbers into this .json file, too.

    Raises:
        ConfigError: the same run twice, other data, or no measure that both have.
        MissingFileError: a folder without a finished run.
        DataError: files that can't be read, or that hold other labels.
    """
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out takes the path of a .json file, given {out}")
    runs = open_run(run_a), open_run(run_b)
    _check_data(*runs)
    a, b = (run.predictions(split) for run in runs)
    _check_images(a, b, runs)
    names = _names(*runs)
    rows, left_out = _classification(a, b, names)
    if runs[0].data.get("size") == runs[1].data.get("size"):
        dense_rows, dense_left_out = _dense(a, b, names)
        rows, left_out = rows + dense_rows, left_out + dense_left_out
    else:
        sizes = " and ".join(str(run.data.get("size")) for run in runs)
        left_out.append(f"Dice and MSE: the images have other sizes, {sizes} pixels")
    if not rows:
        tasks = " and ".join(", ".join(run.tasks) for run in runs)
        raise ConfigError(
            f"expected runs with a task in common, given {tasks}"
            + (f" ({'; '.join(left_out)})" if left_out else "")
        )
    corrected = holm([row.p for row in rows])
    rows = [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]
    comparison = Comparison(
        names[0],
        names[1],
        str(runs[0].path),
        str(runs[1].path),
        runs[0].data_name,
        split,
        tuple(rows),
        tuple(left_out),
        (_ONE_EACH, _JUDGE_AND_PARTY) if split == "val" else (_ONE_EACH,),
        _sentence(rows, names),
    )
    if out is not None:
        write_json(out, comparison.as_dict())
    return comparison


def _check_data(first: FinishedRun, second: FinishedRun) -> None:
    if first.path.resolve() == second.path.resolve():
        raise ConfigError(
            f"expected two runs, given {first.path} twice: medduet compare RUN_A RUN_B"
        )
    for key in ("fingerprint", "splits", "class_names", "mask_names", "multi_label"):
        one, other = first.data.get(key), second.data.get(key)
        if one != other:
            raise ConfigError(
                f"expected two runs on the same data, but {first.path} has {key.replace('_', ' ')} "
                f"{_short(one)} ({first.data_name}) and {second.path} {_short(other)} "
                f"({second.data_name}); train "
                "both on one"
            )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else str(value)


def _check_images(a: SplitPredictions, b: SplitPredictions, runs: Sequence[FinishedRun]) -> None:
    same = np.array_equal(a.index, b.index)
    if a.label is not None and b.label is not None:
        same = same and np.array_equal(a.label, b.label)
    if not same:
        raise DataError(
            f"expected the same images and labels, but the predictions of {runs[0].path} and "
            f"{runs[1].path} have others; train both on the same file"
        )


def _names(first: FinishedRun, second: FinishedRun) -> tuple[str, str]:
    """Return what tells the runs apart: network, tasks, seed, or else their folders."""
    parts: list[tuple[str, str]] = [
        ("+".join(first.tasks), "+".join(second.tasks)),
        (f"seed {first.seed}", f"seed {second.seed}"),
    ]
    differing = [pair for pair in parts if pair[0] != pair[1]]
    if differing or first.model != second.model:
        one, other = zip((first.model, second.model), *differing, strict=True)
        return ", ".join(one), ", ".join(other)
    if first.path.resolve().name != second.path.resolve().name:
        return first.path.resolve().name, second.path.resolve().name
    return str(first.path), str(second.path)


_Names = tuple[str, str]
_Found = tuple[list[Row], list[str]]


def _classification(a: SplitPredictions, b: SplitPredictions, names: _Names) -> _Found:
    label = a.label
    if a.right is None or b.right is None or label is None:
        return [], _lacking("accuracy and AUC", "classify", (a.right, b.right), names)
    assert a.probability is not None
    assert b.probability is not None
    known = label != UNKNOWN_LABEL
    if not known.any():
        return [], ["accuracy and AUC: no label is known"]
    several = label.ndim == 2
    share_a, share_b = (accuracy(label, p, several) for p in (a.probability, b.probability))
    if several:
        row = _over_images("accuracy", a.right, b.right, known)
        row = replace(row, a=share_a, b=share_b)
    else:
        test = mcnemar(a.right[known], b.right[known])
        odds = ("odds ratio", test.odds_ratio)
        row = _row("accuracy", share_a, share_b, test, "McNemar", odds)
    area = delong(label, a.probability, b.probability)
    return [row, _row("AUC", area.auc_a, area.auc_b, area, "DeLong", ("z", area.z))], []


def _dense(a: SplitPredictions, b: SplitPredictions, names: _Names) -> _Found:
    rows = []
    left_out = _lacking("Dice", "segment", (a.mask_dice, b.mask_dice), names)
    left_out += _lacking("MSE", "reconstruct", (a.mse, b.mse), names)
    if a.mask_dice is not None and b.mask_dice is not None:
        assert a.mask_present is not None
        assert b.mask_present is not None
        has_mask, present = ~np.isnan(a.mask_dice), a.mask_present
        if np.array_equal(has_mask, ~np.isnan(b.mask_dice)) and np.array_equal(
            present, b.mask_present
        ):
            rows.append(_over_images("Dice", a.mask_dice, b.mask_dice, has_mask))
            # As metrics.json has it: the mean over pairs of image and class with a true mask.
            pairs = present.sum(axis=1)
            score_a, score_b = (
                np.where(present, dice, 0).sum(axis=1) / np.maximum(pairs, 1)
                for dice in (a.mask_dice, b.mask_dice)
            )
            if pairs.any():
                rows.append(_over_images("Dice of lesions", score_a, score_b, pairs))
        else:
            left_out.append("Dice: the true masks differ")
    if a.mse is not None and b.mse is not None:
        rows.append(_over_images("MSE", a.mse, b.mse, np.ones(len(a.mse))))
    return rows, left_out


def _over_images(measure: str, a: NDArray[Any], b: NDArray[Any], weights: NDArray[Any]) -> Row:
    test = over_images(a, b, weights)
    counted = weights > 0
    mean_a, mean_b = (
        float(np.average(score[counted], weights=weights[counted])) for score in (a, b)
    )
    return _row(measure, mean_a, mean_b, test, "permutation", ("d_z", test.d_z))


def _row(
    measure: str,
    a: float,
    b: float,
    found: McNemar | DeLong | OverImages,
    test: str,
    effect: tuple[str, float],
) -> Row:
    return Row(measure, a, b, found.difference, found.interval, *effect, test, found.p, found.n)


def _lacking(measures: str, task: str, values: tuple[object, object], names: _Names) -> list[str]:
    without = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(without) != 1:
        return []  # both have it, or neither was ever asked for it
    return [f"{measures}: only one run can {task}, {without[0]} can't"]


def _sentence(rows: Sequence[Row], names: _Names) -> str:
    first, tests = rows[0], sum(not np.isnan(row.p) for row in rows)
    correction = f"after Holm's correction for {tests} tests" if tests > 1 else ""
    text = verdict(
        *names,
        first.measure,
        first.difference,
        first.interval,
        first.test,
        first.p_holm,
        first.n,
        correction=correction,
    )
    others = " and ".join(
        f"in {row.measure} ({names[0 if row.difference > 0 else 1]} higher)"
        for row in rows[1:]
        if row.p_holm < EVIDENCE
    )
    link = "as there is" if first.p_holm < EVIDENCE else "but there is"
    return f"{text.removesuffix('.')}, {link} {others}." if others else text
