"""Paired comparisons on the same images: of two runs, and of the methods of a report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medduet.errors import ConfigError
from medduet.metrics.intervals import UNDEFINED, Interval, PairedTest
from medduet.metrics.names import METRICS
from medduet.metrics.paired import holm, mcnemar, over_images, over_seeds
from medduet.metrics.roc import delong
from medduet.reports.grouping import COMPARED, RESAMPLES, Group, image_scores
from medduet.reports.page import say
from medduet.runs.folder import open_run
from medduet.runs.predictions import Predictions
from medduet.utils.files import write_json
from medduet.utils.parsing import misread

PAIRED = tuple(metric for metric in COMPARED if metric != "dice")
"""Metrics that count the same images whatever is predicted."""
ALPHA = 0.05
"""A corrected p below this is called significant."""


@dataclass(frozen=True)
class Difference:
    """How two methods or runs differ on one metric of one data set: a (the reference) minus b.

    Means are over the seeds that both have, tests over the `n` images, and `seeds` is the same seed
    by seed; `consistent` is whether each seed has the same sign.
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
    seeds: PairedTest
    consistent: bool
    p_holm: float = float("nan")
    p_seeds_holm: float = float("nan")

    @property
    def significant(self) -> bool:
        """Whether the test over images rejects at 5% after Holm's correction."""
        return self.p_holm < ALPHA


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Compare, on each metric, the first group that has it with every other one that has it.

    Holm's correction is over the methods of one metric. Only seeds in common count.
    """
    rows: list[Difference] = []
    for metric in PAIRED:
        having = [group for group in groups if group.values(metric)]
        others = [other for other in having[1:] if set(having[0].runs) & set(other.runs)]
        rows += _correct([_difference(metric, having[0], other) for other in others])
    return rows


def _correct(rows: Sequence[Difference]) -> list[Difference]:
    """Return the rows of one family of tests with Holm-corrected p values."""
    corrected = holm([row.p for row in rows]), holm([row.seeds.p for row in rows])
    return [
        replace(row, p_holm=images, p_seeds_holm=seeds)
        for row, images, seeds in zip(rows, *corrected, strict=True)
    ]


def _difference(metric: str, a: Group, b: Group) -> Difference:
    """Compare two groups on a metric that both have, over the seeds that both have."""
    common = set(a.runs) & set(b.runs)
    a, b = (replace(each, runs={seed: each.runs[seed] for seed in common}) for each in (a, b))
    values = [np.array(each.values(metric)) for each in (a, b)]
    apart = values[0] - values[1]
    return Difference(
        metric=metric,
        dataset=a.dataset,
        a=a.method,
        b=b.method,
        mean_a=float(values[0].mean()),
        mean_b=float(values[1].mean()),
        difference=float(apart.mean()),
        seeds=over_seeds(*values),
        consistent=bool((np.sign(apart) == np.sign(apart.mean())).all()),
        **_over_images(metric, a.predictions(), b.predictions()),
    )


def _over_images(metric: str, a: Sequence[Predictions], b: Sequence[Predictions]) -> dict[str, Any]:
    """Test the mean over seeds over the images, which all seeds share.

    AUC by DeLong; accuracy and false positives of one seed by McNemar; everything else by
    sign-flip permutation.
    """
    if metric == "auc":
        sides = [np.array([each.probability for each in side]) for side in (a, b)]
        names, test = ("DeLong", "z"), delong(np.asarray(a[0].label), *sides)
    else:
        (score_a, weights), (score_b, _) = image_scores(a, metric), image_scores(b, metric)
        shares = ("accuracy", "false_positive_rate")
        if metric in shares and len(a) == 1 and weights.ndim == 1:
            right_a, right_b = (score[weights > 0] > 0 for score in (score_a, score_b))
            names, test = ("McNemar", "odds ratio"), mcnemar(right_a, right_b)
        else:
            test = over_images(score_a, score_b, weights, resamples=RESAMPLES)
            names = ("permutation", "d_z")
            if np.array_equal(score_a * weights, score_b * weights):
                test = test._replace(interval=UNDEFINED)
    about = {"test": names[0], "effect_name": names[1]} | test._asdict()
    del about["difference"]  # which is that of the means over seeds
    return about


def shown_p(p: float) -> str:
    """Return a p value as it is written, with its sign: = 0.20, = 0.030 or < 0.001."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2f}" if p >= 0.1 else f"= {p:.3f}"


@dataclass(frozen=True)
class Comparison:
    """Two runs, by their paths, on the same images.

    `rows` are the metrics that both have, `skipped` those that one has alone.
    """

    a: str
    b: str
    data: str
    rows: tuple[Difference, ...]
    skipped: tuple[str, ...]
    sentence: str


@misread("a file of these runs")
def compare(run_a: str | Path, run_b: str | Path, *, out: Path | None = None) -> Comparison:
    """Compare two finished runs on the images of the test split, with paired tests.

    Accuracy and false-positive images by McNemar's test (multi-label: permutation), AUC by
    DeLong's, Dice and reconstruction error by sign-flip permutation; Holm's correction over all of
    them. The epochs are those that validation selected. The numbers are written to `out`, as JSON.

    Raises:
        ConfigError: other data, or no metric that both have.
        MissingFileError: a folder without a finished run.
        DataError: files that can't be read.
    """
    runs = open_run(run_a), open_run(run_b)
    if runs[0].data.get("fingerprint") != runs[1].data.get("fingerprint"):
        given = ", ".join(f"{run.data_name} in {run.path}" for run in runs)
        raise ConfigError(f"expected two runs on the same data in the same split, given {given}")
    a, b = (Group(runs[0].data_name, str(run.path), {0: run}) for run in runs)
    measured = [{metric for metric in PAIRED if each.values(metric)} for each in (a, b)]
    if not (both := set.intersection(*measured)):
        tasks = "; ".join(", ".join(run.tasks) for run in runs)
        raise ConfigError(f"expected runs with a task in common, given {tasks}")
    rows = _correct([_difference(metric, a, b) for metric in PAIRED if metric in both])
    skipped = [
        f"{METRICS[metric].name}: only {each.method} has it"
        for each, metrics in zip((a, b), measured, strict=True)
        for metric in PAIRED
        if metric in metrics - both
    ]
    sentence = say("family", rows[:1], METRICS[rows[0].metric].name, ALPHA)
    about = a.dataset, tuple(rows), tuple(skipped), f"{sentence}."
    comparison = Comparison(a.method, b.method, *about)
    if out is not None:
        write_json(out, asdict(comparison))
    return comparison
