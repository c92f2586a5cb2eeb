"""A preview of a data set: its images, and as training augments them."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from medduet.config import DataConfig
from medduet.data.audit.findings import label_texts
from medduet.data.augment import build_augmentation
from medduet.data.cache import Progress
from medduet.data.pixels import shown_slices
from medduet.data.sources import open_images
from medduet.errors import ConfigError
from medduet.reports.image_grid import UNKNOWN_MASK, Panel, image_grid
from medduet.reports.style import save, slug
from medduet.training.final import choose_samples
from medduet.types import Augment, Batch
from medduet.utils.palette import MASKS

_VERSIONS = 3


def preview(
    data: DataConfig,
    out: Path | None = None,
    *,
    split: Literal["train", "val", "test"] = "train",
    count: Annotated[int, Field(ge=1, le=64)] = 16,
    augment: Augment = "none",
    seed: int = 0,
    progress: Progress = None,
) -> Path:
    """Draw the first images of each class of a split into a PNG, and return its path.

    Args:
        data: the data set.
        out: PNG file to write; ``None`` for ``DATA-preview.png`` in the working folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        count: images, 1 to 64.
        augment: beside each image are three augmented versions, unless it is ``"none"``.
        seed: of the augmentation.
        progress: shows the progress of downloads and conversions.

    Raises:
        ConfigError: a file that can't be drawn.
    """
    if out is not None and out.suffix != ".png":
        raise ConfigError(f"--out takes the path of a .png file, given {out}")
    image_set = open_images(data, progress=progress)
    images = image_set.split(split)
    index = choose_samples(images.labels, len(image_set.class_names), count)
    if images.labels.ndim == 1:
        index = index[np.argsort(images.labels[index], kind="stable")]
    augmentation = build_augmentation(augment, image_set, data.modality)
    panels = [_panel("original" if augmentation else "", images.batch(index))]
    if augmentation is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            versions = [augmentation(images.batch(index)) for _ in range(_VERSIONS)]
        panels += [_panel("augmented", version) for version in versions]
    figure = image_grid(
        panels,
        label_texts(images.labels[index], image_set.class_names).tolist(),
        f"{image_set.name}: {len(index)} of {len(images):,} images of {split}",
        f"--train.augment {augment}" if augmentation else "",
        outlines=list(zip(image_set.mask_names[1:], MASKS, strict=False)),
    )
    out = out or Path(f"{slug(image_set.name)}-preview.png")
    save(figure, out)
    return out


def _panel(caption: str, batch: Batch) -> Panel:
    image, masks = batch.image, None
    if image.is_floating_point():
        image = (image * 255).round().to(torch.uint8)
    pixels = (image[:, 0] if image.shape[1] == 1 else image.movedim(1, -1)).numpy()
    if batch.mask is not None:
        has_mask = batch.has_mask.reshape(-1, *[1] * (batch.mask.ndim - 1))
        masks = torch.where(has_mask, batch.mask, UNKNOWN_MASK).numpy()
    if image.ndim == 5:
        places = shown_slices(pixels, masks)
        pixels, masks = pixels[places], None if masks is None else masks[places]
    return Panel(caption, pixels, masks)
