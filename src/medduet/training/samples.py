"""Some test images with truth and prediction, kept so that figures redraw without the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medduet.data.imageset import ImageSet
from medduet.models.base import DuetNetwork
from medduet.types import DenseLayout, Outputs
from medduet.utils.files import atomic_path

SAMPLES = 8


def choose_samples(
    labels: NDArray[np.int64], num_classes: int, count: int = SAMPLES
) -> NDArray[np.int64]:
    """Return the positions of the first images of each class, `count` in all: no picking.

    Classes take turns, so that each one that fits is there; images of no class, or of none that
    is known, are one more. Sets without classes give their first images.

    Example:
        >>> choose_samples(np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]), 2).tolist()
        [0, 1, 2, 3, 6, 7, 8, 10]
        >>> choose_samples(np.array([[1, 0], [1, 0], [0, 0], [1, 1]]), 2, count=3).tolist()
        [0, 2, 3]
    """
    of = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(num_classes)
    of = np.column_stack([of, ~of.any(axis=1)])
    # The turn at which each class comes to each of its images.
    turn = np.cumsum(of, axis=0)
    places, classes = np.nonzero(of)
    order = np.lexsort((classes, turn[places, classes]))
    first = list(dict.fromkeys(places[order].tolist()))[:count]
    return np.sort(np.array(first, dtype=np.int64))


def write_samples(path: Path, network: DuetNetwork, data: ImageSet, layout: DenseLayout) -> None:
    """Write ``samples.npz`` of the test split.

    Its arrays: ``index`` (n,) int64; ``images`` (n, H, W) or (n, H, W, 3) uint8; where they apply
    ``truth_masks`` and ``predicted_masks`` (n, H, W) uint8, ``has_mask`` (n,) bool, and
    ``reconstructions`` like the images.
    """
    index = choose_samples(data.test.labels, len(data.class_names))
    batch = data.test.batch(index)
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        outputs: Outputs = network(batch.image.to(device))
    network.train(was_training)
    arrays: dict[str, NDArray[np.generic]] = {"index": index, "images": data.test.images[index]}
    if outputs.dense is not None:
        dense = outputs.dense.float().cpu()
        if layout.mask_classes and batch.mask is not None:
            arrays["truth_masks"] = batch.mask.numpy().astype(np.uint8)
            arrays["predicted_masks"] = layout.mask(dense).numpy().astype(np.uint8)
            arrays["has_mask"] = batch.has_mask.numpy()
        if layout.image_channels:
            rebuilt = network.normalize.invert(layout.image(outputs.dense).float()).cpu()
            scaled = rebuilt.clamp(0, 1) * 255
            image = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            arrays["reconstructions"] = image[..., 0] if image.shape[-1] == 1 else image
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
