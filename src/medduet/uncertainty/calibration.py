"""What the probabilities of a trained network are worth: calibrated, as sets, and when to abstain.

Everything works on probabilities, in numpy alone, so that networks that run without torch have it
too. All of it is fitted on the validation split and saved in the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

from medduet.errors import ConfigError, DataError, ModelError

PERCENT = range(50, 100)
"""The coverages, and the accuracies of what is answered, that can be asked for."""
FEWEST = 20
"""Images with a known label that a calibration needs."""
COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of the temperature."""
_UNKNOWN = -1
_SMALLEST, _LARGEST = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the validation split says of the probabilities of a network with K classes.

    Attributes:
        temperature: divides the logits; above 1 for a network that is too sure of itself.
        needed: ``(50, K)`` float, for each coverage of `PERCENT` the calibrated probability from
            which on a class is in the set; 0 where it always is.
        abstain_below: ``(50,)`` float, for each accuracy of `PERCENT` the confidence below which
            no answer is given; NaN where no threshold reaches that accuracy.
        counts: ``(K,)`` int, validation images of each class.
        n: validation images with a known label.
        multi_label: whether an image may carry several labels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> share = rng.dirichlet([0.5, 0.5, 0.5], 600)
        >>> label = (share.cumsum(axis=1) < rng.random((600, 1))).sum(axis=1)
        >>> calibration = Calibration.fit(label, share)
        >>> calibrated = calibration.calibrate([[0.98, 0.01, 0.01], [0.50, 0.46, 0.04]])
        >>> calibration.sets(calibrated, 0.9).astype(int).tolist()
        [[1, 0, 0], [1, 1, 0]]
        >>> calibration.abstains(calibrated, calibration.threshold(0.85)).tolist()
        [False, True]
    """

    temperature: float
    needed: Array
    abstain_below: Array
    counts: NDArray[np.int64]
    n: int
    multi_label: bool = False

    @classmethod
    def fit(
        cls, label: ArrayLike, probability: ArrayLike, multi_label: bool = False
    ) -> Calibration:
        """Return the calibration that fits the predictions of a validation split.

        The temperature minimises the negative log likelihood. As in Platt's scaling one image of
        unknown class is added, so that a network without a wrong answer does not become sure.

        The sets are split conformal with the score 1 - p of the true class (Sadinle et al., 2019,
        arXiv:1609.00451), and each class has a threshold of its own, so that the promise holds in
        each. Classes with too few images for a coverage share a threshold, with the next larger
        ones until they are enough; the promise then holds for these together. A higher coverage
        never makes a set smaller.

        Args:
            label: ``(N,)`` int class, or ``(N, K)`` int of 0 and 1 if `multi_label`; -1 where
                unknown, which is left out.
            probability: ``(N, K)`` float in [0, 1].
            multi_label: whether an image may carry several labels.

        Raises:
            DataError: fewer than `FEWEST` images with a known label, only one class among them, or
                input that does not fit together.

        Example:
            >>> label = np.arange(40) % 2
            >>> sure = np.where(np.arange(40) < 32, 0.99, 0.01)  # but wrong in 8 of 40
            >>> share = np.where(label[:, None] == [0, 1], sure[:, None], 1 - sure[:, None])
            >>> calibration = Calibration.fit(label, share)
            >>> round(calibration.temperature, 1)
            3.4
            >>> calibration.calibrate([[0.99, 0.01]]).round(2).tolist()
            [[0.79, 0.21]]
        """
        truth, p = checked(label, probability, multi_label)
        known = truth != _UNKNOWN
        n = int(known.reshape(len(known), -1).any(axis=1).sum())
        if n < FEWEST:
            raise DataError(f"expected {FEWEST} labelled images or more, given {n}")
        if len(np.unique(truth[known])) < 2:
            raise DataError("expected two classes among the labels, given one")
        temperature = _temperature(truth, p, multi_label)
        p = _scaled(p, temperature, multi_label)
        has = truth == 1 if multi_label else truth[:, None] == np.arange(p.shape[1])
        scores = [np.sort(column[of])[::-1] for column, of in zip(p.T, has.T, strict=True)]
        right = ((p > 0.5) == (truth == 1)) if multi_label else p.argmax(axis=1) == truth
        abstain_below = _abstain_below(confidence(p, multi_label)[known], right[known])
        counts = has.sum(axis=0)
        return cls(temperature, _needed(scores), abstain_below, counts, n, multi_label)

    def calibrate(self, probability: ArrayLike) -> Array:
        """Return the calibrated probabilities ``(N, K)`` of those of the network ``(N, K)``.

        The order of the classes of an image stays, and so does the accuracy. ModelError for
        another number of classes, or for what is no probability.
        """
        return _scaled(self._checked(probability), self.temperature, self.multi_label)

    def sets(self, calibrated: ArrayLike, coverage: float) -> NDArray[np.bool_]:
        """Return which classes are in the set of each image, ``(N, K)``.

        On images like those of the validation split the true class is in the set of at least a
        share `coverage` of the images of each class. A set always holds the most probable class.
        Multi-label sets: each label that an image has is in the set with that probability; a set
        may be empty, when no label is likely.

        Args:
            calibrated: ``(N, K)``, what `calibrate` returns.
            coverage: 0.5 to 0.99, rounded up to the next hundredth.

        Raises:
            ConfigError: a coverage outside.
            ModelError: another number of classes, or what is no probability.
        """
        p = self._checked(calibrated)
        chosen: NDArray[np.bool_] = p >= self.needed[_row(coverage, "a coverage")]
        if not self.multi_label and len(p):
            np.put_along_axis(chosen, p.argmax(axis=1)[:, None], True, axis=1)
        return chosen

    def threshold(self, accuracy: float) -> float:
        """Return the least confidence at which the answered validation images were that accurate.

        It is the lowest threshold that leaves `FEWEST` answers at least with an accuracy as
        wanted. That is found on the validation split, not promised for others.

        Args:
            accuracy: 0.5 to 0.99, rounded up to the next hundredth.

        Raises:
            ConfigError: an accuracy outside, or one that no threshold reaches.
        """
        found = float(self.abstain_below[_row(accuracy, "an accuracy")])
        if math.isnan(found):
            raise ConfigError(
                f"no threshold reaches an accuracy of {accuracy:g} on the {self.n} validation "
                "images: ask for less"
            )
        return found

    def abstains(self, calibrated: ArrayLike, below: float) -> NDArray[np.bool_]:
        """Return for which images no answer should be given.

        Args:
            calibrated: ``(N, K)``, what `calibrate` returns.
            below: the confidence needed for an answer, of your own or of `threshold`. Confidence
                is the largest probability; multi-label, that of each label or of its absence.

        Returns:
            ``(N,)`` bool; ``(N, K)`` for multi-label sets.

        Raises:
            ConfigError: `below` is not between 0 and 1.
            ModelError: another number of classes, or what is no probability.
        """
        if not 0 <= below <= 1:
            raise ConfigError(f"expected a confidence from 0 to 1, given {below:g}; type 0.8")
        return confidence(self._checked(calibrated), self.multi_label) < below

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        below = self.abstain_below.tolist()
        return {
            "multi_label": self.multi_label,
            "n": self.n,
            "counts": self.counts.tolist(),
            "temperature": self.temperature,
            "needed": dict(zip(_KEYS, self.needed.tolist(), strict=True)),
            "abstain_below": {
                key: None if math.isnan(value) else value
                for key, value in zip(_KEYS, below, strict=True)
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> Calibration:
        """Return the calibration that `to_json` wrote; ModelError in one line for anything else."""
        try:
            saved = _Saved.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"][:3]) or "top level"
            raise _damaged(f"{place}: {first['msg']}") from error
        counts, rows = np.array(saved.counts), list(saved.needed.values())
        if list(saved.needed) != _KEYS or list(saved.abstain_below) != _KEYS:
            raise _damaged(f"expected the keys {_KEYS[0]} to {_KEYS[-1]} in order")
        if any(len(row) != len(counts) for row in rows):
            raise _damaged(f"expected {len(counts)} thresholds of each coverage, one per class")
        needed = np.array(rows, dtype=np.float64)
        if (np.diff(needed, axis=0) > 0).any():
            raise _damaged("a higher coverage needs a higher probability")
        if len(counts) < 2 - saved.multi_label or counts.max() > saved.n:
            raise _damaged(f"{len(counts)} classes with at most {counts.max()} of {saved.n} images")
        below = np.array(list(saved.abstain_below.values()), dtype=np.float64)
        return cls(saved.temperature, needed, below, counts, saved.n, saved.multi_label)

    @classmethod
    def of_bundle(cls, config: Mapping[str, Any]) -> Calibration | None:
        """Return the calibration in the ``config.json`` of a bundle or an exported network.

        ``None`` if there is none: an older bundle, or for the reason in ``calibration_missing``.
        ModelError if it is damaged, or that of another network.
        """
        if config.get("calibration") is None:
            return None
        found = cls.from_json(config["calibration"])
        classes, several = len(config.get("class_names", ())), bool(config.get("multi_label"))
        if (len(found.counts), found.multi_label) != (classes, several):
            raise _damaged(f"it is not that of a network with {classes} classes")
        return found

    def _checked(self, probability: ArrayLike) -> Array:
        p = np.asarray(probability, dtype=np.float64)
        if p.ndim != 2 or p.shape[1] != len(self.counts):
            raise ModelError(
                f"expected probabilities (N, {len(self.counts)}), as the calibration has as many "
                f"classes, given {p.shape}"
            )
        if not ((p >= 0) & (p <= 1)).all():
            raise ModelError("expected probabilities from 0 to 1, given others")
        return p


_KEYS = [f"{percent / 100:.2f}" for percent in PERCENT]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Saved(BaseModel):
    """A calibration as it stands in a bundle, which may come from a stranger."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    multi_label: bool
    n: int = Field(ge=FEWEST, le=2**53)
    counts: list[Annotated[int, Field(ge=0, le=2**53)]] = Field(min_length=1)
    temperature: float = Field(ge=COLDEST, le=HOTTEST, allow_inf_nan=False)
    needed: Mapping[str, list[_Share]]
    abstain_below: Mapping[str, _Share | None]


def _damaged(what: str) -> ModelError:
    return ModelError(f"the calibration of the bundle is damaged: {what}; copy the bundle again")


def checked(
    label: ArrayLike, probability: ArrayLike, multi_label: bool
) -> tuple[NDArray[np.int64], Array]:
    """Return labels and probabilities as arrays that fit together; DataError if they don't."""
    truth, p = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if p.ndim != 2 or truth.shape != (p.shape if multi_label else p.shape[:1]):
        raise DataError(
            "expected probability (N, K) and label "
            f"{'(N, K)' if multi_label else '(N,)'}, given {p.shape} and {truth.shape}"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("expected probabilities from 0 to 1, given others")
    largest = 1 if multi_label else p.shape[1] - 1
    if truth.size and not (
        np.issubdtype(truth.dtype, np.integer) and _UNKNOWN <= truth.min() <= truth.max() <= largest
    ):
        raise DataError(f"expected integer labels 0 to {largest}, or {_UNKNOWN} for unknown")
    return truth.astype(np.int64), p


def _row(share: float, what: str) -> int:
    """Return the row of `PERCENT` of a share, rounded up."""
    if not PERCENT[0] <= 100 * share <= PERCENT[-1]:
        raise ConfigError(f"expected {what} from {_KEYS[0]} to {_KEYS[-1]}, given {share:g}")
    return math.ceil(100 * share - 1e-9) - PERCENT[0]


def _logits(p: Array, multi_label: bool) -> Array:
    p = np.clip(p, _SMALLEST, _LARGEST if multi_label else 1.0)
    return np.log(p) - np.log1p(-p) if multi_label else np.log(p)


def _scaled(p: Array, temperature: float, multi_label: bool) -> Array:
    """Return what the probabilities become when the logits behind them are divided."""
    logits = _logits(p, multi_label) / temperature
    scaled: Array = expit(logits) if multi_label else np.exp(log_softmax(logits, axis=1))
    return scaled


def confidence(p: Array, multi_label: bool) -> Array:
    """Return how sure an answer is, ``(N,)``; multi-label, of each label ``(N, K)``."""
    return np.maximum(p, 1 - p) if multi_label else p.max(axis=1)


def _temperature(truth: NDArray[np.int64], p: Array, multi_label: bool) -> float:
    known = truth != _UNKNOWN
    logits, labels = _logits(p, multi_label)[known], truth[known]
    if multi_label:  # each label of each image is a question with two answers
        logits = np.stack([-logits, logits], axis=1) / 2
    classes = logits.shape[1]
    share = 1 / (len(labels) + 1)  # of the added image
    target = (labels[:, None] == np.arange(classes)) * (1 - share) + share / classes

    def loss(log_temperature: float) -> float:
        said = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float((target * said).sum(axis=1).mean())

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(math.exp(found.x), COLDEST, HOTTEST))


def _needed(scores: list[Array]) -> Array:
    """Return `Calibration.needed`; `scores` are the probabilities of the truth, falling, by class.

    Of n scores the ``ceil((n + 1) * coverage)``-th largest one holds the promise, if there is one.
    """
    order = np.argsort([len(of) for of in scores], kind="stable")
    needed = np.zeros((len(PERCENT), len(scores)))
    for row, percent in zip(needed, PERCENT, strict=True):

        def place(of: Array, percent: int = percent) -> int:
            return -(-(len(of) + 1) * percent // 100) - 1

        pooled = sum(place(of) >= len(of) for of in scores)
        shared = np.concatenate([scores[k] for k in order[:pooled]] or [np.empty(0)])
        while 0 < pooled < len(scores) and place(shared) >= len(shared):
            shared = np.concatenate([shared, scores[order[pooled]]])
            pooled += 1
        shared = np.sort(shared)[::-1]
        for rank, k in enumerate(order):
            of = shared if rank < pooled else scores[k]
            row[k] = of[place(of)] if place(of) < len(of) else 0.0
    return np.minimum.accumulate(needed, axis=0)


def _abstain_below(confidence: Array, right: NDArray[np.bool_]) -> Array:
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # A threshold answers all images of equal confidence, and some images at least.
    last = np.append(falling[1:] < falling[:-1], True)
    last[: FEWEST - 1] = False
    thresholds = np.full(len(PERCENT), np.nan)
    for row, percent in enumerate(PERCENT):
        reached = np.flatnonzero(last & (100 * accuracy >= percent - 1e-9))
        if len(reached):
            everything = reached[-1] == len(order) - 1
            thresholds[row] = 0.0 if everything else falling[reached[-1]]
    return thresholds
