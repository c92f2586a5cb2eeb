"""Paired comparisons on the same images: of two runs, and of the methods of a report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from medduet.errors import ConfigError, DataError
from medduet.metrics.intervals import Interval
from medduet.metrics.names import METRICS
from medduet.metrics.paired import OverSeeds, holm, mcnemar, over_images, over_seeds
from medduet.metrics.roc import delong
from medduet.reports.grouping import RESAMPLES, Group
from medduet.reports.measures import COMPARED, has_metric, image_scores
from medduet.runs.folder import RunFolder, open_run
from medduet.runs.predictions import Predictions
from medduet.utils.files import write_json
from medduet.utils.parsing import misread

ALPHA = 0.05
"""A corrected p below this is called significant."""
_DENSE = ("dice_nonempty", "dice", "mse")
_NAN = float("nan")


@dataclass(frozen=True)
class Difference:
    """How two methods or runs differ on one metric of one data set.

    Attributes:
        metric: its key in ``metrics.json``.
        dataset: name of the data set.
        a: name of the first, in a report the reference.
        b: name of the second.
        mean_a: mean over the seeds that both have.
        mean_b: likewise.
        difference: a minus b.
        interval: of the difference, 95%, over images; NaN where no image tells them apart.
        test: name of the paired test over images.
        p: of it, two-sided.
        effect_name: what the effect size is.
        effect: its value; NaN where it is not defined.
        n: images.
        seeds: the same differences, seed by seed.
        consistent: whether the difference has the same sign in every seed.
        p_holm: corrected for all tests of the same family.
        p_seeds_holm: of the paired t test over seeds, corrected likewise; NaN for one seed.
    """

    metric: str
    dataset: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval
    test: str
    p: float
    effect_name: str
    effect: float
    n: int
    seeds: OverSeeds
    consistent: bool
    p_holm: float = _NAN
    p_seeds_holm: float = _NAN

    @property
    def significant(self) -> bool:
        """Whether the test over images rejects at 5% after Holm's correction."""
        return self.p_holm < ALPHA

    @property
    def evidence(self) -> str:
        """Which test rejects: over ``"images"``, over ``"seeds"``, ``"both"`` or ``"none"``."""
        images, seeds = self.significant, self.p_seeds_holm < ALPHA
        return "both" if images and seeds else "images" if images else "seeds" if seeds else "none"

    @property
    def scale(self) -> tuple[int, int, str]:
        """Factor, decimals and unit by which the difference is shown."""
        if self.metric == "accuracy":
            return 100, 1, " points"
        return 1, METRICS[self.metric].digits - 1, ""


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Compare, on each metric, the first group that has it with every other one that has it.

    Holm's correction is over the methods of one metric. A method without a seed in common is left
    out.
    """
    rows: list[Difference] = []
    for metric in COMPARED:
        having = [group for group in groups if has_metric(group, metric)]
        pairs = [
            (having[0], other) for other in having[1:] if set(having[0].runs) & set(other.runs)
        ]
        rows += correct([difference(metric, *pair) for pair in pairs])
    return rows


def correct(rows: Sequence[Difference]) -> list[Difference]:
    """Return the rows of one family of tests with Holm-corrected p values."""
    images, seeds = holm([row.p for row in rows]), holm([row.seeds.p for row in rows])
    return [
        replace(row, p_holm=p, p_seeds_holm=q)
        for row, p, q in zip(rows, images, seeds, strict=True)
    ]


def difference(metric: str, a: Group, b: Group, split: str = "test") -> Difference:
    """Compare two groups on a metric that both have, over the seeds that both have."""
    seeds = [seed for seed in a.seeds if seed in b.runs]
    values = [
        np.array(
            [group.runs[seed].validation_selected[split][metric] for seed in seeds], dtype=float
        )
        for group in (a, b)
    ]
    apart = values[0] - values[1]
    mean = float(apart.mean())
    return Difference(
        metric=metric,
        dataset=a.dataset,
        a=a.method,
        b=b.method,
        mean_a=float(values[0].mean()),
        mean_b=float(values[1].mean()),
        difference=mean,
        seeds=over_seeds(*values),
        consistent=bool((np.sign(apart) == np.sign(mean)).all()),
        **_over_images(metric, a.predictions(split, seeds), b.predictions(split, seeds))._asdict(),
    )


class _Test(NamedTuple):
    interval: Interval
    test: str
    p: float
    effect_name: str
    effect: float
    n: int


def _over_images(metric: str, a: Sequence[Predictions], b: Sequence[Predictions]) -> _Test:
    """Test the mean over seeds over the images, which all seeds share.

    AUC by DeLong; accuracy of one seed by McNemar; everything else by sign-flip permutation.
    """
    if metric == "auc":
        probabilities = [np.array([each.probability for each in side]) for side in (a, b)]
        assert a[0].label is not None
        area = delong(a[0].label, *probabilities)
        return _Test(area.interval, "DeLong", area.p, "z", area.z, area.n)
    (score_a, weights), (score_b, _) = image_scores(a, metric), image_scores(b, metric)
    if metric == "accuracy" and len(a) == 1 and weights.ndim == 1:
        labelled = weights > 0
        table = mcnemar(score_a[labelled] > 0, score_b[labelled] > 0)
        odds = table.odds_ratio
        return _Test(table.interval, "McNemar", table.p, "odds ratio", odds, table.n)
    means = over_images(score_a, score_b, weights, resamples=RESAMPLES)
    interval = means.interval if means.p < 1 or means.difference else (_NAN, _NAN)
    return _Test(interval, "permutation", means.p, "d_z", means.d_z, means.n)


def describe(row: Difference) -> str:
    """Return a comparison as one sentence.

    Without a significant difference it doesn't say that there is none.
    """
    name, (factor, digits, unit) = METRICS[row.metric].name, row.scale
    better, worse, sign = (row.a, row.b, 1) if row.difference >= 0 else (row.b, row.a, -1)
    if math.isnan(row.difference):
        return f"{name} of {row.a} and {row.b} cannot be compared (n = {row.n})."
    amount = f"{factor * abs(row.difference):.{digits}f}"
    low, high = sorted(sign * factor * bound for bound in row.interval)
    ci = "" if math.isnan(low) else f"95% CI {low:.{digits}f} to {high:.{digits}f}, "
    if float(amount) == 0:
        claim = f"{name}: {better} and {worse} are about equal"
    else:
        claim = f"{name}: {better} is {amount}{unit} higher than {worse}"
    claim += f" ({ci}n = {row.n})"
    if math.isnan(row.p_holm):
        return f"{claim}; too few images for a test."
    verdict = "significant" if row.significant else "no significant"
    return f"{claim}; {verdict} difference ({row.test}, Holm-corrected p {shown_p(row.p_holm)})."


def shown_p(p: float) -> str:
    """Return a p value as it is written, with its sign.

    Example:
        >>> shown_p(0.2), shown_p(0.0304), shown_p(0.00001)
        ('= 0.20', '= 0.030', '< 0.001')
    """
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2f}" if p >= 0.1 else f"= {p:.3f}"


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images.

    Attributes:
        a: name of the first run: what differs from the second.
        b: name of the second run.
        path_a: its folder.
        path_b: likewise.
        data: name of the data set.
        split: the split.
        rows: the metrics that both runs have, Holm-corrected together.
        skipped: metrics that can't be compared, and why.
        notes: limits of the comparison.
        sentence: the result in one or two sentences.
    """

    a: str
    b: str
    path_a: str
    path_b: str
    data: str
    split: str
    rows: tuple[Difference, ...]
    skipped: tuple[str, ...]
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

    Accuracy by McNemar's test (multi-label: permutation), AUC by DeLong's, Dice and reconstruction
    error by sign-flip permutation; Holm's correction over all of them. The epochs are those that
    validation selected.

    Args:
        run_a: the folder of a run.
        run_b: of another, on the same data.
        split: ``"test"`` or ``"val"``.
        out: write the numbers into this .json file, too.

    Raises:
        ConfigError: the same run twice, other data, or no metric that both have.
        MissingFileError: a folder without a finished run.
        DataError: files that can't be read, or that hold other labels.
    """
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out takes the path of a .json file, given {out}")
    runs = open_run(run_a), open_run(run_b)
    _check_data(*runs)
    names = _names(*runs)
    a, b = (Group(runs[0].data_name, name, {0: run}) for name, run in zip(names, runs, strict=True))
    _check_images(a.predictions(split)[0], b.predictions(split)[0], runs)
    rows: list[Difference] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    for metric in COMPARED:
        if reason := _not_comparable(metric, a, b, split):
            skipped[reason].append(METRICS[metric].name)
        elif has_metric(a, metric, split) and has_metric(b, metric, split):
            rows.append(difference(metric, a, b, split))
    lines = tuple(f"{', '.join(metrics)}: {reason}" for reason, metrics in skipped.items())
    if not rows:
        tasks = " and ".join(", ".join(run.tasks) for run in runs)
        raise ConfigError(
            f"expected runs with a task in common, given {'; '.join((tasks, *lines))}"
        )
    rows = correct(rows)
    sentence = describe(rows[0])
    if also := [
        f"{METRICS[row.metric].name} ({names[0 if row.difference > 0 else 1]} higher)"
        for row in rows[1:]
        if row.significant
    ]:
        sentence += f" Also significant: {', '.join(also)}."
    notes = ["One run each: differences between seeds are not taken into account."]
    if split == "val":
        notes.append("Epochs were selected on the validation split: its scores are optimistic.")
    comparison = Comparison(
        a=names[0],
        b=names[1],
        path_a=str(runs[0].path),
        path_b=str(runs[1].path),
        data=runs[0].data_name,
        split=split,
        rows=tuple(rows),
        skipped=lines,
        notes=tuple(notes),
        sentence=sentence,
    )
    if out is not None:
        write_json(out, comparison.as_dict())
    return comparison


def _check_data(first: RunFolder, second: RunFolder) -> None:
    if first.path.resolve() == second.path.resolve():
        raise ConfigError(
            f"expected two runs, given {first.path} twice: medduet compare RUN_A RUN_B"
        )
    for key in ("fingerprint", "splits", "class_names", "mask_names", "multi_label"):
        a, b = first.data.get(key), second.data.get(key)
        if a != b:
            raise ConfigError(
                f"expected two runs on the same data, but {key.replace('_', ' ')} differs: "
                f"{str(a)[:40]} ({first.data_name}) in {first.path}, {str(b)[:40]} "
                f"({second.data_name}) in {second.path}; train both on one data set"
            )


def _check_images(a: Predictions, b: Predictions, runs: tuple[RunFolder, RunFolder]) -> None:
    same = np.array_equal(a.index, b.index)
    if a.label is not None and b.label is not None:
        same = same and np.array_equal(a.label, b.label)
    if not same:
        raise DataError(
            f"expected the same images and labels, but the predictions of {runs[0].path} and "
            f"{runs[1].path} have others; train both on the same file"
        )


def _names(first: RunFolder, second: RunFolder) -> tuple[str, str]:
    """Return what distinguishes the runs: network, tasks, seed, or else their folders."""
    pairs = [
        ("+".join(first.tasks), "+".join(second.tasks)),
        (f"seed {first.seed}", f"seed {second.seed}"),
    ]
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if differing or first.model_name != second.model_name:
        a, b = zip((first.model_name, second.model_name), *differing, strict=True)
        return ", ".join(a), ", ".join(b)
    if first.path.resolve().name != second.path.resolve().name:
        return first.path.resolve().name, second.path.resolve().name
    return str(first.path), str(second.path)


def _not_comparable(metric: str, a: Group, b: Group, split: str) -> str:
    """Return why two runs can't be compared on a metric that one of them has; else nothing."""
    having = [group.method for group in (a, b) if has_metric(group, metric, split)]
    if len(having) == 1:
        return f"only {having[0]} has it"
    if having and metric in _DENSE:
        if a.first.data.get("size") != b.first.data.get("size"):
            return "the images have different sizes"
        if metric != "mse":
            one, other = (image_scores(each.predictions(split), metric)[1] for each in (a, b))
            if not np.array_equal(one, other):
                return "the true masks differ"
    return ""
