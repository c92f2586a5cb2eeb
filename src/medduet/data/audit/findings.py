"""What an audit reports: findings, the images they concern, and pairs of duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.data.imageset import SPLITS, ImageSet

Severity = Literal["leak", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("leak", "warning", "note")


@dataclass(frozen=True, eq=False)
class Finding:
    """One issue of a data set.

    Attributes:
        kind: a name for each check, such as ``near-duplicates-across-splits``.
        severity: ``leak`` (inflates test scores), ``warning`` (to check before training), ``note``.
        message: one sentence with counts.
        rows: ``(n,)`` int64 rows of the pool, the images concerned; empty where whole splits are.
    """

    kind: str
    severity: Severity
    message: str
    rows: NDArray[np.int64]


class Findings(list[Finding]):
    """The findings so far; `splits` is the split of each image of the pool, ``(N,)``."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__()
        self.splits = split_numbers(images)

    def of_set(self, title: str, severity: Severity, text: str, rows: Any = ()) -> None:
        """Add a finding about whole splits; its kind is the title in lower case."""
        kind, rows = title.lower().replace(" ", "-"), np.array(rows, dtype=np.int64)
        self.append(Finding(kind, severity, f"{title}: {text}", rows))

    def of_images(
        self, title: str, severity: Severity, where: NDArray[np.bool_], text: str = ""
    ) -> None:
        """Add a finding about the images `where`, ``(N,)``, if there are any."""
        rows = np.flatnonzero(where)
        if len(rows):
            count = f"{plural(len(rows), 'image')} ({per_split(rows, self.splits)})"
            self.of_set(title, severity, f"{count}{text}.", rows)


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of `medduet.audit`; rows are those of the set's pool, train first.

    Attributes:
        name, fingerprint: of the set.
        findings: leaks first, then warnings, then notes.
        images: one row per image: ``image`` (its id), ``split`` and ``label``.
        pairs: one row per pair of duplicates, the worst first, indexed by the rows of both
            images: image, split and label of each (``_a``, ``_b``), ``similarity`` (correlation of
            thumbnails), ``exact``, ``across_splits``, ``labels_differ``, ``masks_differ``.
        classes: images per class (index) in ``train``, ``val`` and ``test``.
    """

    name: str
    fingerprint: str
    findings: tuple[Finding, ...]
    images: pd.DataFrame
    pairs: pd.DataFrame
    classes: pd.DataFrame

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The findings that inflate test scores."""
        return tuple(finding for finding in self.findings if finding.severity == "leak")

    def counts(self) -> dict[Severity, int]:
        """Return the number of findings of each severity."""
        severities = [finding.severity for finding in self.findings]
        return {severity: severities.count(severity) for severity in SEVERITIES}

    def record(self) -> dict[str, Any]:
        """Return everything but the pairs, ready for JSON, with every image of every finding."""
        sizes, findings = self.images["split"].value_counts(), []
        for finding in self.findings:
            entry = {name: getattr(finding, name) for name in ("kind", "severity", "message")}
            findings.append(entry | {"images": self.images.iloc[finding.rows].to_dict("records")})
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "images": {split: int(sizes[split]) for split in SPLITS},
            "classes": self.classes.rename_axis("name").reset_index().to_dict("records"),
            "findings": findings,
        }


def split_numbers(images: ImageSet) -> NDArray[np.int64]:
    """Return the split of each image of the pool, ``(N,)``: 0 train, 1 val, 2 test."""
    return np.repeat(np.arange(len(SPLITS)), [len(images.split(name)) for name in SPLITS])


def label_texts(labels: NDArray[np.int64], class_names: Sequence[str]) -> NDArray[np.str_]:
    """Return labels ``(N,)``, or ``(N, K)`` of 0 and 1, as text; -1 is unknown."""
    if not class_names:
        return np.full(len(labels), "", dtype=np.str_)
    if labels.ndim == 1:
        return np.array([*class_names, "unknown"], dtype=np.str_)[labels]  # -1 is the last one
    names = np.array(class_names)
    texts = [" + ".join(names[row == 1]) or ("unknown" if row.max() else "none") for row in labels]
    return np.array(texts, dtype=np.str_)


def plural(count: int, noun: str) -> str:
    """Return ``"1 image"`` or ``"12 images"``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def per_split(rows: NDArray[np.int64], splits: NDArray[np.int64]) -> str:
    """Return the number of `rows` in each split as text, such as ``"2 train, 1 test"``."""
    counts = np.bincount(splits[rows], minlength=len(SPLITS))
    return ", ".join(f"{n:,} {name}" for name, n in zip(SPLITS, counts, strict=True) if n)
