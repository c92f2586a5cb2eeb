"""Calibrated probabilities of a trained network, and prediction sets.

Everything works on probabilities, in numpy alone, so that networks that run without torch have it
too. All of it is fitted on the validation split and saved in the bundle.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

from medduet.errors import ConfigError, DataError, ModelError
from medduet.metrics.classification import BINS, reliability
from medduet.metrics.inputs import Booleans, Floats, check_predictions, one_vs_rest
from medduet.metrics.intervals import bounds, number, wilson
from medduet.types import UNKNOWN_LABEL

PERCENT = range(50, 100)  # the coverages that can be asked for
COVERAGES = (0.8, 0.9, 0.95)  # those whose sets are evaluated
FEWEST = 20  # images with a known label that a calibration needs
COLDEST, HOTTEST = 0.05, 20.0  # bounds of the temperature
_SMALLEST, _LARGEST = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg

_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class Calibration(BaseModel):
    """Temperature and conformal thresholds of a network with K classes.

    It stands in the ``config.json`` of a bundle, which may be a stranger's, and so is checked.

    Attributes:
        temperature: divides the logits; above 1 for an overconfident network.
        set_thresholds: K of each coverage 0.50 to 0.99: a class of this probability is in the set.
        counts: validation images of each of the K classes.
        n: validation images with a known label.
        multi_label: whether an image may carry several labels.
        ordinal: whether classes are grades; sets are then ranges.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> share = rng.dirichlet([0.5, 0.5, 0.5], 600)
        >>> label = (share.cumsum(axis=1) < rng.random((600, 1))).sum(axis=1)
        >>> calibration = Calibration.fit(label, share)
        >>> calibrated = calibration.calibrate([[0.98, 0.01, 0.01], [0.50, 0.46, 0.04]])
        >>> calibration.sets(calibrated, 0.9).astype(int).tolist()
        [[1, 0, 0], [1, 1, 0]]
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    temperature: float = Field(ge=COLDEST, le=HOTTEST, allow_inf_nan=False)
    set_thresholds: list[list[_Probability]] = Field(min_length=50, max_length=50)
    counts: list[_Count] = Field(min_length=1, max_length=10_000)
    n: int = Field(ge=FEWEST, le=2**53)
    multi_label: bool = False
    ordinal: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        classes = len(self.counts)
        if classes < 2 - self.multi_label or max(self.counts) > self.n:
            raise ValueError(f"{classes} classes with up to {max(self.counts)} of {self.n} images")
        if any(len(row) != classes for row in self.set_thresholds):
            raise ValueError(f"expected {classes} thresholds for each coverage, one per class")
        if (np.diff(self.set_thresholds, axis=0) > 0).any():
            raise ValueError("expected thresholds that fall with the coverage")
        return self

    @classmethod
    def fit(
        cls,
        label: ArrayLike,
        probability: ArrayLike,
        multi_label: bool = False,
        ordinal: bool = False,
    ) -> Self:
        """Return the calibration that fits the predictions of a validation split.

        The temperature minimises the negative log likelihood. As in Platt's scaling one image of
        unknown class is added, so that a network without a wrong answer does not become sure.

        The sets are split conformal with the score 1 - p of the true class (Sadinle et al., 2019,
        arXiv:1609.00451), and each class has a threshold of its own, so that the promise holds in
        each. Classes with too few images for a coverage share a threshold, with the next larger
        ones until they are enough; the promise then holds for these together.

        Args:
            label: ``(N,)`` int class, or ``(N, K)`` int of 0 and 1 if `multi_label`; -1 is unknown.
            probability: ``(N, K)`` float in [0, 1].
            multi_label: whether an image may carry several labels.
            ordinal: whether classes are grades.

        Raises:
            DataError: fewer than 20 images with a known label, or only one class among them.
        """
        truth, p = check_predictions(label, probability, multi_label, in_unit_range=True)
        has, answered = one_vs_rest(truth, p.shape[1])
        n = int(answered.any(axis=1).sum())
        if n < FEWEST:
            raise DataError(f"expected {FEWEST} labelled images or more, given {n}")
        labelled = truth != UNKNOWN_LABEL
        if len(np.unique(truth[labelled])) < 2:
            raise DataError("expected two classes among the labels, given one")
        temperature = _temperature(truth[labelled], _logits(p, multi_label)[labelled], multi_label)
        p = _scaled(p, temperature, multi_label)
        scores = [np.sort(p[has[:, k], k])[::-1] for k in range(p.shape[1])]
        return cls(
            temperature=temperature,
            set_thresholds=_set_thresholds(scores).tolist(),
            counts=has.sum(axis=0).tolist(),
            n=n,
            multi_label=multi_label,
            ordinal=ordinal,
        )

    def calibrate(self, probability: ArrayLike) -> Floats:
        """Return the calibrated probabilities ``(N, K)`` of those of the network ``(N, K)``.

        Raises:
            ModelError: another number of classes, or values outside [0, 1].
        """
        return _scaled(self._checked(probability), self.temperature, self.multi_label)

    def sets(self, calibrated: ArrayLike, coverage: float) -> Booleans:
        """Return which classes are in each image's set, ``(N, K)``, by calibrated probabilities.

        On images like those of the validation split the true class is in the set of at least a
        share `coverage`, 0.5 to 0.99, of the images of each class. A set always holds the most
        probable class, and of grades all between two that it holds. Multi-label sets: each label
        that an image has is in the set with that probability; a set may be empty.

        Raises:
            ConfigError: another coverage.
            ModelError: another number of classes, or values outside [0, 1].
        """
        if not PERCENT[0] <= 100 * coverage <= PERCENT[-1]:
            raise ConfigError(f"expected a coverage from 0.50 to 0.99, given {coverage:g}")
        p, row = self._checked(calibrated), math.ceil(100 * coverage - 1e-9) - PERCENT[0]
        chosen: Booleans = p >= self.set_thresholds[row]
        if not self.multi_label and len(p):
            np.put_along_axis(chosen, p.argmax(axis=1)[:, None], True, axis=1)
        if self.ordinal:  # with all grades between two that are in it
            after = np.logical_or.accumulate(chosen[:, ::-1], axis=1)[:, ::-1]
            chosen = np.logical_or.accumulate(chosen, axis=1) & after
        return chosen

    def _checked(self, probability: ArrayLike) -> Floats:
        p, classes = np.asarray(probability, dtype=np.float64), len(self.counts)
        if p.ndim != 2 or p.shape[1] != classes:
            raise ModelError(f"expected probabilities (N, {classes}) to calibrate, given {p.shape}")
        if not ((p >= 0) & (p <= 1)).all():
            values = f"{p.min():g} to {p.max():g}"
            raise ModelError(f"expected probabilities from 0 to 1, given {values}")
        return p


def _logits(p: Floats, multi_label: bool) -> Floats:
    p = np.clip(p, _SMALLEST, _LARGEST if multi_label else 1.0)
    return np.log(p) - np.log1p(-p) if multi_label else np.log(p)


def _scaled(p: Floats, temperature: float, multi_label: bool) -> Floats:
    logits = _logits(p, multi_label) / temperature
    return np.asarray(expit(logits) if multi_label else np.exp(log_softmax(logits, axis=1)))


def _temperature(labels: NDArray[np.int64], logits: Floats, multi_label: bool) -> float:
    if multi_label:  # each label of each image is a question with two answers
        logits = np.stack([-logits, logits], axis=1) / 2
    classes, share = logits.shape[1], 1 / (len(labels) + 1)  # of the added image
    target = (labels[:, None] == np.arange(classes)) * (1 - share) + share / classes

    def loss(log_temperature: float) -> float:
        log_probability = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float((target * log_probability).sum(axis=1).mean())

    log_bounds = (math.log(COLDEST), math.log(HOTTEST))
    best = minimize_scalar(loss, bounds=log_bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(math.exp(best.x), COLDEST, HOTTEST))


def _set_thresholds(scores: list[Floats]) -> Floats:
    """Return `Calibration.set_thresholds`; `scores`: probability of the truth, falling, by class.

    Classes with too few scores for a coverage share the threshold of all their scores.
    """
    smallest_first = np.argsort([len(column) for column in scores], kind="stable").tolist()
    thresholds = np.zeros((len(PERCENT), len(scores)))
    for row, percent in zip(thresholds, PERCENT, strict=True):
        pool, total = list[int](), 0
        for k in smallest_first:
            n = len(scores[k])
            if _place(n, percent) < n and (not pool or _place(total, percent) < total):
                break
            pool.append(k)
            total += n
        shared = np.sort(np.concatenate([*(scores[k] for k in pool), np.empty(0)]))[::-1]
        for k, class_scores in enumerate(scores):
            falling = np.append(shared if k in pool else class_scores, 0.0)
            row[k] = falling[_place(len(falling) - 1, percent)]
    return np.minimum.accumulate(thresholds, axis=0)


def _place(n: int, percent: int) -> int:
    """Return which of n falling scores holds the promise, from 0; n if they are too few."""
    return min(-(-(n + 1) * percent // 100) - 1, n)


def calibration_summary(
    calibration: Calibration, label: ArrayLike, probability: ArrayLike, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return what a calibration gives on images that it was not fitted on, ready for JSON.

    Multi-label coverage has no interval, since the labels of one image depend on each other.
    """
    several = calibration.multi_label
    truth, p = check_predictions(label, probability, several, in_unit_range=True)
    has, labelled = one_vs_rest(truth, p.shape[1])
    rows = labelled.any(axis=1)
    truth, p, has = truth[rows], p[rows], has[rows]
    calibrated = calibration.calibrate(p)
    summary: dict[str, Any] = {
        "n": len(truth),
        "temperature": calibration.temperature,
        "ece_kind": f"{'every label' if several else 'top label'}, {BINS} bins of equal width",
        "reliability": {},
        "sets": {},
    }
    for when, values in (("before", p), ("after", calibrated)):
        diagram = reliability(truth, values, several)
        summary[f"ece_{when}"] = number(diagram.error)
        summary["reliability"][when] = {
            "n": diagram.n.tolist(),
            "confidence": [number(value) for value in diagram.confidence],
            "frequency": [number(value) for value in diagram.frequency],
        }
    for coverage in COVERAGES:
        chosen = calibration.sets(calibrated, coverage)
        every = _held(chosen, has) | ({"coverage_interval": None} if several else {})
        per_class = {
            str(name): _held(chosen[has[:, k]], has[has[:, k]], k)
            for k, name in enumerate(class_names)
        }
        summary["sets"][f"{coverage:.2f}"] = every | {"per_class": per_class}
    return summary


def _held(chosen: Booleans, has: Booleans, k: int | slice = slice(None)) -> dict[str, Any]:
    """Return how many of the classes `k` that images have, ``(N, K)``, are in their sets."""
    count, n, sizes = int((chosen & has)[:, k].sum()), int(has[:, k].sum()), chosen.sum(axis=1)
    return {
        "n": n,
        "coverage": count / n if n else None,
        "coverage_interval": bounds(wilson(count, n)),
        "size": number(sizes.mean()) if len(sizes) else None,
    }
