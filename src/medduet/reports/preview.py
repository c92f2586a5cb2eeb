"""A look at the images of a data set, as they are and as training sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    config: DataConfig,
    path: Path | None = None,
    *,
    split: str = "train",
    count: int = 16,
    augment: Augment = "none",
    seed: int = 0,
    progress: ProgressFactory | None = None,
) -> Path:
    """Draw the first images of each class of a split into a PNG, and return its path.

    Args:
        config: the data set.
        path: of the file; ``None`` for ``DATA-show.png`` in the working folder.
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
    if path is not None and path.suffix != ".png":
        raise ConfigError(f"--out takes the path of a .png file, given {path}")
    data = open_images(config, progress=progress)
    images = data.split(split)
    index = choose_samples(images.labels, len(data.class_names), count)
    if images.labels.ndim == 1:
        index = index[np.argsort(images.labels[index], kind="stable")]
    versions = []
    augmentation = build_augmentation(augment, data, config.modality)
    if augmentation is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            versions = [_arrays(augmentation(images.batch(index))) for _ in range(_VERSIONS)]
    original, masks = _arrays(images.batch(index))
    how = f"with {_VERSIONS} versions of each by --train.augment {augment}" if versions else ""
    figure = image_sheet(
        original,
        images.labels[index] if data.class_names else None,
        data.class_names,
        masks,
        data.mask_names,
        versions,
        f"{data.name}: {len(index)} of {len(images):,} images of {split}",
        how,
    )
    path = path or Path(f"{slug(data.name)}-show.png")
    save(figure, path)
    return path


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
