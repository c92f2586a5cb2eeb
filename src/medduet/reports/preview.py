"""A look at the images of a data set, as they are and as training sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medduet.config import Augment, DataConfig
from medduet.data.augment import build_augmentation
from medduet.data.cache import ProgressFactory
from medduet.data.sources import open_images
from medduet.errors import ConfigError
from medduet.reports.sheet import UNKNOWN_MASK, image_sheet
from medduet.reports.style import save, slug
from medduet.training.final import choose_samples
from medduet.types import Batch

MOST = 64
_VERSIONS = 3


def show_images(
    data: DataConfig,
    out: Path | None = None,
    *,
    split: Literal["train", "val", "test"] = "train",
    count: int = 16,
    augment: Augment = "none",
    seed: int = 0,
    progress: ProgressFactory | None = None,
) -> Path:
    """Draw the first images of each class of a split into a PNG, and return its path.

    Args:
        data: the data set.
        out: PNG file to write; ``None`` for ``DATA-preview.png`` in the working folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        count: images, 1 to 64.
        augment: beside each image are three versions of it, unless it is ``"none"``.
        seed: of the augmentation.
        progress: draws the progress of downloads and conversions.

    Raises:
        ConfigError: a count or file that can't be drawn.
        MedDuetError: the data can't be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "phantoms.png"
        >>> show_images(DataConfig(name="phantom", size=16, count=20), path, augment="light").name
        'phantoms.png'
    """
    if not 1 <= count <= MOST:
        raise ConfigError(f"--count must be 1 to {MOST} images, given {count}")
    if out is not None and out.suffix != ".png":
        raise ConfigError(f"--out takes the path of a .png file, given {out}")
    image_set = open_images(data, progress=progress)
    images = image_set.split(split)
    index = choose_samples(images.labels, len(image_set.class_names), count)
    if images.labels.ndim == 1:
        index = index[np.argsort(images.labels[index], kind="stable")]
    versions = []
    augmentation = build_augmentation(augment, image_set, data.modality)
    if augmentation is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            versions = [_arrays(augmentation(images.batch(index))) for _ in range(_VERSIONS)]
    original, masks = _arrays(images.batch(index))
    how = f"with {_VERSIONS} versions of each by --train.augment {augment}" if versions else ""
    figure = image_sheet(
        original,
        images.labels[index] if image_set.class_names else None,
        image_set.class_names,
        masks,
        image_set.mask_names,
        versions,
        f"{image_set.name}: {len(index)} of {len(images):,} images of {split}",
        how,
    )
    out = out or Path(f"{slug(image_set.name)}-preview.png")
    save(figure, out)
    return out


def _arrays(batch: Batch) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Return the images of a batch as uint8, and its masks, with `UNKNOWN_MASK` where unknown."""
    image = batch.image
    if image.is_floating_point():
        image = (image * 255).round().to(torch.uint8)
    pictures = image.permute(0, 2, 3, 1).numpy()
    pictures = pictures[..., 0] if pictures.shape[-1] == 1 else pictures
    if batch.mask is None:
        return pictures, None
    known = batch.has_mask[:, None, None]
    return pictures, torch.where(known, batch.mask, UNKNOWN_MASK).numpy()
