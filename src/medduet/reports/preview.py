"""A preview of a data set: its images, with their classes and masks."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from medduet.config import DataConfig
from medduet.data.audit.findings import label_texts
from medduet.data.cache import Progress
from medduet.data.sources import open_images
from medduet.errors import ConfigError
from medduet.reports.image_grid import image_grid, panel_of
from medduet.reports.style import save, slug
from medduet.training.final import choose_samples
from medduet.utils.palette import MASKS


def preview(
    data: DataConfig,
    out: Path | None = None,
    *,
    split: Literal["train", "val", "test"] = "train",
    count: Annotated[int, Field(ge=1, le=64)] = 16,
    progress: Progress = None,
) -> Path:
    """Draw the first images of each class of a split into a PNG, and return its path.

    Args:
        data: the data set.
        out: PNG file to write; ``None`` for ``DATA-preview.png`` in the working folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        count: images, 1 to 64.
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
    figure = image_grid(
        [panel_of(image_set, images, index)],
        label_texts(images.labels[index], image_set.class_names).tolist(),
        f"{image_set.name}: {len(index)} of {len(images):,} images of {split}",
        outlines=list(zip(image_set.mask_names[1:], MASKS, strict=False)),
    )
    out = out or Path(f"{slug(image_set.name)}-preview.png")
    save(figure, out)
    return out
