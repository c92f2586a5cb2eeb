"""What a network predicts for a split, image by image: in memory and as CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.errors import DataError
from medduet.metrics.classification import correct_predictions
from medduet.utils.files import write_text
from medduet.utils.parsing import csv_text, misread, read_csv

Floats = NDArray[np.float64]
PER_MASK = ("dice", "iou", "hd95", "assd", "truth_pixels", "predicted_pixels")
"""The scores of each image and mask class."""
_CLASSES = ("label", "predicted", "probability", "calibrated")


@dataclass(frozen=True, eq=False)
class Predictions:
    """A network's predictions for N images of a split, of K classes and M foreground mask classes.

    What it does not predict or is not measured is ``None``; NaN or 0 where masks are unknown.
    """

    index: NDArray[np.int64]  # (N,), position in the split
    class_names: tuple[str, ...] = ()
    mask_names: tuple[str, ...] = ()
    ids: NDArray[np.str_] | None = None  # (N,)
    label: NDArray[np.int64] | None = None  # (N,), or (N, K) of 0 and 1; -1 unknown
    probability: Floats | None = None  # (N, K), as trained
    calibrated: Floats | None = None  # (N, K), as the bundle predicts
    has_mask: NDArray[np.bool_] | None = None  # (N,)
    dice: Floats | None = None  # (N, M), as those below; NaN where both masks are empty
    iou: Floats | None = None
    hd95: Floats | None = None  # pixels or mm; NaN where either mask is empty
    assd: Floats | None = None
    truth_pixels: NDArray[np.int64] | None = None
    predicted_pixels: NDArray[np.int64] | None = None
    mse: Floats | None = None  # (N,), on a scale of -1 to 1; psnr in dB
    psnr: Floats | None = None
    ssim: Floats | None = None
    losses: Mapping[str, float] = field(default_factory=dict)  # mean of each task; NaN if unknown

    def __len__(self) -> int:
        return len(self.index)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several classes."""
        return self.label is not None and self.label.ndim == 2

    @property
    def predicted(self) -> NDArray[np.int64] | None:
        """``(N,)``, the likeliest class; ``None`` for multi-label sets."""
        if self.probability is None or self.multi_label:
            return None
        return np.asarray(self.probability.argmax(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """In the shape of `label`: whether the predicted class is right; False where unknown."""
        if self.label is None or self.probability is None:
            return None
        return correct_predictions(self.label, self.probability, self.multi_label)

    @property
    def mask_present(self) -> NDArray[np.bool_] | None:
        """``(N, M)``, whether the true mask has any pixel of the class."""
        return None if self.truth_pixels is None else self.truth_pixels > 0

    @property
    def drawn(self) -> NDArray[np.bool_] | None:
        """``(N,)``, whether the predicted mask has any foreground."""
        return None if self.predicted_pixels is None else self.predicted_pixels.sum(axis=1) > 0

    def to_csv(self, path: Path) -> None:
        """Write one line per image; what has classes or masks as ``probability_CLASS``."""
        columns: dict[str, NDArray[Any]] = {}
        for name in ("index", "ids", *_CLASSES, "has_mask", *PER_MASK, "mse", "psnr", "ssim"):
            array = getattr(self, name)
            if array is not None and array.ndim == 2:
                names = self.mask_names if name in PER_MASK else self.class_names
                columns |= {f"{name}_{k}": column for k, column in zip(names, array.T, strict=True)}
            elif array is not None:
                columns["image" if name == "ids" else name] = array
        if "has_mask" in columns:
            columns["has_mask"] = columns["has_mask"].astype(int)
        write_text(path, csv_text(pd.DataFrame(columns)))

    @classmethod
    def from_csv(cls, path: Path) -> Self:
        """Read what `to_csv` wrote; MissingFileError or DataError if it is no such table."""
        with misread(path), np.errstate(invalid="raise"):  # a label that is no number
            # As text: Python reads each number as it was written, pandas would round some.
            table = read_csv(path)
            if "index" not in table or not len(table) or not isinstance(table.index, pd.RangeIndex):
                raise DataError(f"expected a column index and one line per image in {path}")
            classes, masks = (
                [name.removeprefix(prefix) for name in table if name.startswith(prefix)]
                for prefix in ("probability_", "dice_")
            )
            arrays: dict[str, Any] = {}
            for name in (each.name for each in fields(cls)):
                columns = [f"{name}_{each}" for each in (masks if name in PER_MASK else classes)]
                columns = columns if columns and columns[0] in table else [name]
                if columns[0] in table:
                    cells = table[columns].replace("", "nan").to_numpy(object).astype(np.float64)
                    arrays[name] = cells[:, 0] if columns == [name] else cells
            if classes and "label" not in arrays:
                raise KeyError("label")
            for name in arrays.keys() & {"index", "label", "truth_pixels", "predicted_pixels"}:
                arrays[name] = arrays[name].astype(np.int64)
        if "has_mask" in arrays:
            arrays["has_mask"] = arrays["has_mask"] > 0
        if "image" in table:
            arrays["ids"] = table["image"].to_numpy(str)
        return cls(**arrays, class_names=tuple(classes), mask_names=tuple(masks))

    @classmethod
    def concatenate(cls, several: Sequence[Self]) -> Self:
        """Return several splits of one network in one, numbered anew; ``None`` what one lacks."""
        arrays: dict[str, Any] = {}
        for name in (each.name for each in fields(cls)):
            values = [getattr(each, name) for each in several]
            if all(isinstance(value, np.ndarray) for value in values):
                arrays[name] = np.concatenate(values)
        arrays["index"] = np.arange(sum(map(len, several)))
        return cls(**arrays, class_names=several[0].class_names, mask_names=several[0].mask_names)
