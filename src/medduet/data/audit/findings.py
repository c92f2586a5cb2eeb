"""What an audit finds, in sentences, and the images that it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.types import UNKNOWN_LABEL

Severity = Literal["leak", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("leak", "warning", "note")
"""How much a finding matters, most first."""
_NO_ROWS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing to know about a set.

    Attributes:
        kind: what it is, such as ``copies-across``; one name for each check.
        severity: ``leak`` (scores come out too good), ``warning`` (look before you train) or
            ``note`` (good to know).
        sentence: what was found, with counts.
        rows: ``(n,)`` int64 places in the pool of the images that it concerns; empty where it
            concerns whole splits.
    """

    kind: str
    severity: Severity
    sentence: str
    rows: NDArray[np.int64] = field(default_factory=_NO_ROWS.copy)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images that show the same, two by two, the worst pairs first.

    Attributes:
        rows: ``(P, 2)`` int64 places in the pool, the smaller first.
        likeness: ``(P,)`` float32 correlation of their thumbnails.
        exact: ``(P,)`` bool, whether all pixels are equal.
        across: ``(P,)`` bool, whether they are in two splits.
        labels_differ: ``(P,)`` bool, whether both labels are known and differ.
        masks_differ: ``(P,)`` bool, whether both masks are known and disagree.
    """

    rows: NDArray[np.int64]
    likeness: NDArray[np.float32]
    exact: NDArray[np.bool_]
    across: NDArray[np.bool_]
    labels_differ: NDArray[np.bool_]
    masks_differ: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Audit:
    """What `medduet.audit` found in a set; places are those of its pool, train first.

    Attributes:
        name, fingerprint: of the set.
        findings: leaks first, then warnings, then notes.
        pairs: of images that show the same.
        ids: ``(N,)`` text, what each image is called.
        splits: ``(N,)`` int64, 0 train, 1 val, 2 test.
        labels: ``(N,)`` text, the class of each image; empty without classes.
        classes: for each class its images in train, val and test.
    """

    name: str
    fingerprint: str
    findings: tuple[Finding, ...]
    pairs: Pairs
    ids: NDArray[np.str_]
    splits: NDArray[np.int64]
    labels: NDArray[np.str_]
    classes: tuple[tuple[str, tuple[int, int, int]], ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The findings for which scores come out too good."""
        return tuple(finding for finding in self.findings if finding.severity == "leak")

    def row(self, place: int) -> dict[str, str]:
        """Return id, split and label of the image at a place of the pool."""
        return {
            "id": str(self.ids[place]),
            "split": SPLITS[int(self.splits[place])],
            "label": str(self.labels[place]),
        }

    def record(self) -> dict[str, Any]:
        """Return all but the pairs, ready for JSON, with every image of every finding."""
        sizes = np.bincount(self.splits, minlength=len(SPLITS)).tolist()
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "images": dict(zip(SPLITS, sizes, strict=True)),
            "classes": [
                {"name": name, **dict(zip(SPLITS, counts, strict=True))}
                for name, counts in self.classes
            ],
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "sentence": finding.sentence,
                    "images": [self.row(place) for place in finding.rows],
                }
                for finding in self.findings
            ],
        }


def split_numbers(images: ImageSet) -> NDArray[np.int64]:
    """Return the split of each image of the pool, ``(N,)``: 0 train, 1 val, 2 test."""
    return np.repeat(np.arange(len(SPLITS)), [len(images.split(name)) for name in SPLITS])


def label_texts(pool: Split, class_names: Sequence[str]) -> NDArray[np.str_]:
    """Return the classes of each image as text, ``(N,)``.

    Example:
        >>> import medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> label_texts(images.pool(), images.class_names)[:3].tolist()
        ['ring', 'spiculated', 'normal']
    """
    if not class_names:
        return np.full(len(pool), "", dtype=np.str_)
    if pool.labels.ndim == 1:
        # The last name is that of -1.
        return np.array([*class_names, "unknown"], dtype=np.str_)[pool.labels]
    kinds, of = np.unique(pool.labels, axis=0, return_inverse=True)
    texts = [
        "unknown"
        if (kind == UNKNOWN_LABEL).all()
        else " + ".join(class_names[k] for k in np.flatnonzero(kind == 1).tolist()) or "none"
        for kind in kinds
    ]
    return np.array(texts, dtype=np.str_)[of.reshape(-1)]


def counted_images(count: int) -> str:
    """Return ``"1 image"`` or ``"12 images"``."""
    return f"{count:,} image{'s' * (count != 1)}"


def per_split(rows: NDArray[np.int64], splits: NDArray[np.int64]) -> str:
    """Return how many of some images are in each split, in words.

    Example:
        >>> per_split(np.array([0, 1, 3]), np.array([0, 0, 1, 2]))
        '2 in train, 1 in test'
    """
    counts = np.bincount(splits[rows], minlength=len(SPLITS))
    return ", ".join(f"{n:,} in {name}" for name, n in zip(SPLITS, counts, strict=True) if n)


def listed(words: Iterable[str]) -> str:
    """Return words as one phrase: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
