"""A phantom in 3D: a volume of one to three lesions with its exact mask.

As of images, the class shows in outline and inside of the lesions; their number, places, sizes,
contrast and its sign say nothing of it.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

_TISSUE, _MOST_LESIONS, _SPIKES = 0.42, 3, 14

Floats = NDArray[np.float32]


def draw_volume(kind: str, size: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """Return a volume in [0, 1] of a class of `phantom_images`, and its mask, ``(D, H, W)`` each.

    All sides have `size` voxels. ``normal`` has no lesion; ``smooth`` ones are ellipsoids with an
    even inside, ``spiculated`` ones have spikes, and rim and core of a ``ring`` differ.
    """

    def noise(grain: float) -> Floats:  # of mean 0 and variance 1, the grain a part of the side
        white = rng.standard_normal((size, size, size), dtype=np.float32)
        smooth = gaussian_filter(white, grain * size, mode="wrap")
        return np.asarray(smooth / smooth.std(), dtype=np.float32)

    volume = _TISSUE + 0.05 * noise(0.08) + 0.03 * noise(0.03)
    mask = np.zeros(volume.shape, dtype=bool)
    for _ in range(0 if kind == "normal" else rng.integers(1, _MOST_LESIONS + 1)):
        depth = _depth(kind, size, rng)
        contrast = rng.uniform(0.14, 0.26) * rng.choice([-1.0, 1.0])
        level = contrast * np.where((kind == "ring") & (depth > 0.4), -0.9, 1)
        volume = np.where(depth > 0, 0.3 * volume + 0.7 * _TISSUE + level, volume)
        mask |= depth > 0
    volume = gaussian_filter(volume, 0.008 * size) * (1 + 0.08 * noise(0.012))
    return np.clip(volume * rng.uniform(0.85, 1.15), 0, 1).astype(np.float32), mask


def _depth(kind: str, size: int, rng: np.random.Generator) -> Floats:
    """Return how deep each voxel lies in one lesion, in parts of its radius; below 0 outside."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    radius = rng.uniform(0.13, 0.19) * rng.uniform(0.75, 1.0, 3)
    offset = (place - rng.uniform(0.25, 0.75, 3)) / radius
    distance = np.linalg.norm(offset, axis=-1)
    outline = np.ones_like(distance)
    if kind == "spiculated":
        spikes = rng.standard_normal((_SPIKES, 3))
        spikes /= np.linalg.norm(spikes, axis=1, keepdims=True)
        cosine = (offset @ spikes.T).max(axis=-1) / np.maximum(distance, 1e-6)
        outline = 0.6 + 0.9 * np.exp(14 * (cosine - 1))
    return np.asarray(outline - distance, dtype=np.float32)
