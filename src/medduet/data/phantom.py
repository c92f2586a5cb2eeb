"""Phantoms: generated ultrasound-like images, and volumes, with exact masks, for demos and tests.

Nothing is downloaded and nothing is random beyond the seed. The class shows in the outline and the
texture of the lesions; their number, places, sizes, directions, contrast and its sign say nothing
of it.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.errors import ConfigError

CLASS_NAMES = ("normal", "smooth", "spiculated", "ring")
_CHUNK = 64
_TISSUE, _MOST_LESIONS, _SPIKES = 0.42, 3, 14

Floats = NDArray[np.float32]


def phantom_images(
    size: int = 64,
    count: int | tuple[int, int, int] = 500,
    channels: int = 1,
    seed: int = 0,
    dims: int = 2,
) -> ImageSet:
    """Generate a set of phantoms of four balanced classes, with masks.

    The images look like ultrasound: layered tissue under speckle, uneven gain, and a shadow or a
    bright band below the lesion. ``normal`` has no lesion and an empty mask, ``smooth`` is an oval
    with an even inside, ``spiculated`` is a star with a coarse inside, ``ring`` is an oval whose
    rim and core differ. Each is brighter or darker than the tissue with equal chance: trained on
    320 images of 48 pixels and tested on 400, logistic regression on the pixels has an accuracy of
    0.27 (chance is 0.25), a U-Net of 0.4 million parameters 0.98 after 36 epochs.

    Args:
        size: height and width in pixels, at least 16.
        count: images in train, val and test; or their total, which is split 70/10/20.
        channels: 1 for grey, 3 for RGB (a stained look, the same lesions).
        seed: the data seed; the same arguments give the same bytes.
        dims: 3 for volumes, of one to three lesions of one kind, see `draw_volume`.

    Example:
        >>> images = phantom_images(size=32, count=20)
        >>> images.train.images.shape, images.class_names
        ((14, 32, 32), ('normal', 'smooth', 'spiculated', 'ring'))
    """
    if isinstance(count, int):
        counts = (count - count // 10 - count // 5, count // 10, count // 5)
    else:
        counts = count
    if size < 16 or min(counts) < 1 or channels not in (1, 3)[: 4 - dims] or seed < 0:
        raise ConfigError(
            "expected a size of at least 16, a count of at least 10, 1 or 3 channels and a seed of "
            f"at least 0 for phantoms, given {size}, {count}, {channels} and {seed}"
        )
    name = {2: "phantom", 3: "phantom3d"}[dims]
    digest = hashlib.sha256(f"{name}-1 {size} {counts} {channels} {seed}".encode())
    splits: dict[str, Any] = {}
    for number, (split_name, length) in enumerate(zip(SPLITS, counts, strict=True)):
        rng = np.random.default_rng([seed, number])
        splits[split_name] = split = _split(length, size, channels, dims, rng)
        for array in (split.images, split.labels, split.masks):
            digest.update(np.asarray(array).tobytes())
    options = {"size": size, "count": list(counts), "channels": channels, "seed": seed}
    return ImageSet(
        name=name,
        **splits,
        class_names=CLASS_NAMES,
        mask_names=("background", "lesion"),
        multi_label=False,
        fingerprint=digest.hexdigest(),
        info={"source": name, **options, "licence": "MIT"},
    )


def _split(length: int, size: int, channels: int, dims: int, rng: np.random.Generator) -> Split:
    labels = rng.permutation(np.arange(length, dtype=np.int64) % len(CLASS_NAMES))
    sides, colours = [size] * dims, [3] * (channels == 3)
    images, masks = (np.empty((length, *sides, *more), np.uint8) for more in (colours, []))
    step = _CHUNK if dims == 2 else 1
    for start in range(0, length, step):
        part = slice(start, start + step)
        if dims == 2:
            drawn, masks[part] = _draw(labels[part], _Canvas(len(labels[part]), size, rng))
        else:
            drawn, masks[part] = draw_volume(CLASS_NAMES[labels[start]], size, rng)
        images[part] = np.rint((_stain(drawn, rng) if colours else drawn) * 255)
    return Split(images, labels, masks)


class _Canvas:
    """Coordinates and randomness of `n` images at once."""

    def __init__(self, n: int, size: int, rng: np.random.Generator) -> None:
        self.n, self.size, self.rng = n, size, rng
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.y, self.x = axis[None, :, None], axis[None, None, :]

    def uniform(self, low: float, high: float) -> Floats:
        """Return one number per image, ``(n, 1, 1)``."""
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def wave(self, angle: NDArray[Any]) -> Floats:
        """Return the sine of `angle` from a random start for each image."""
        return np.asarray(np.sin(angle + self.uniform(0, 2 * np.pi)), dtype=np.float32)

    def noise(self, down: float, across: float) -> Floats:
        """Return smooth noise ``(n, size, size)``, mean 0, variance 1, grain in parts of `size`."""
        white = self.rng.standard_normal((self.n, self.size, self.size), dtype=np.float32)
        smooth = gaussian_filter(white, (0.0, down * self.size, across * self.size), mode="wrap")
        return np.asarray(smooth / smooth.std(axis=(1, 2), keepdims=True), dtype=np.float32)


def _draw(labels: NDArray[np.int64], canvas: _Canvas) -> tuple[Floats, NDArray[np.bool_]]:
    size, uniform = canvas.size, canvas.uniform
    level, grain, inside = _lesion(labels, canvas)
    tissue: Any = _tissue(canvas)
    # Sound behind a lesion is weakened or strengthened, whatever the lesion is.
    behind = np.cumsum(inside, axis=1, dtype=np.float32) * ~inside / (0.3 * size)
    shade = gaussian_filter(behind, (0, 0.02 * size, 0.03 * size)) * (1.2 - canvas.y)
    tissue = tissue * (1 + uniform(-0.5, 0.4) * shade)
    image = np.where(inside, 0.3 * tissue + 0.7 * _TISSUE + level, tissue)
    image = gaussian_filter(image, (0, 0.008 * size, 0.008 * size))
    # Speckle is wider than deep, as with a real transducer, and multiplies the echo.
    speckle = canvas.noise(0.007, 0.013) + 0.4 * canvas.noise(0.003, 0.003)
    image = image * (1 + 0.17 * speckle * np.where(inside, grain, 1))
    gain = uniform(0.85, 1.15) * (1 + uniform(-0.3, 0.2) * (canvas.y - 0.5))
    return np.clip(image * gain, 0, 1).astype(np.float32), inside


def _tissue(canvas: _Canvas) -> Floats:
    """Return wavy layers between bright sheets of fascia, ``(n, size, size)``, without speckle."""
    x, uniform, noise = canvas.x, canvas.uniform, canvas.noise
    bend = uniform(-0.5, 0.5) * (x - 0.5) ** 2 + uniform(-0.15, 0.15) * x
    depth = canvas.y + bend + 0.025 * noise(0.06, 0.14)
    image = _TISSUE + 0.045 * noise(0.05, 0.09)
    fascia = 1 + 0.5 * noise(0.05, 0.12)
    for place in (0.05, 0.25, 0.55, 0.85):
        offset = depth - place - uniform(-0.1, 0.1)
        image = image + uniform(-0.07, 0.07) * np.tanh(offset / 0.03)
        image = image + uniform(0.0, 0.22) * fascia * np.exp(-((offset / 0.02) ** 2))
    return np.asarray(image, dtype=np.float32)


def _lesion(labels: NDArray[np.int64], canvas: _Canvas) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the brightness and the grain of the inside, and the mask, ``(n, size, size)`` each."""
    uniform, wave, column = canvas.uniform, canvas.wave, (canvas.n, 1, 1)
    smooth, star, ring = ((labels == label)[:, None, None] for label in (1, 2, 3))
    radius, aspect = uniform(0.15, 0.26), uniform(0.65, 0.95)
    turn = uniform(0, np.pi)
    dy, dx = canvas.y - uniform(0.28, 0.72), canvas.x - uniform(0.28, 0.72)
    along = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
    across = (np.cos(turn) * dy - np.sin(turn) * dx) / (radius * aspect)
    angle = np.arctan2(across, along)
    outline = 1 + 0.05 * wave(2 * angle) + 0.05 * wave(3 * angle)
    spikes = canvas.rng.integers(6, 10, column).astype(np.float32)
    spike = (1 - np.abs(wave(spikes * angle / 2))) ** 1.3
    outline = outline * np.where(star, 0.66 + (0.75 + 0.2 * wave(angle)) * spike, 1)
    depth = outline - np.hypot(along, across)
    inside = (depth > 0) & (smooth | star | ring)
    contrast = uniform(0.11, 0.24) * canvas.rng.choice([-1.0, 1.0], column)
    level = contrast * np.where(ring & (depth > 0.38), -0.9, 1)
    level = level + star * 0.09 * canvas.noise(0.022, 0.022)
    grain = np.where(smooth, 0.6, np.where(star, 1.4, 0.8))
    return level.astype(np.float32), grain.astype(np.float32), inside


def _stain(grey: Floats, rng: np.random.Generator) -> Floats:
    """Colour images ``(n, H, W)`` in [0, 1] from purple to rose, each with a stain of its own."""
    n = len(grey)
    dark = np.array([0.36, 0.12, 0.44]) + rng.uniform(-0.04, 0.04, (n, 1, 1, 3))
    light = np.array([0.99, 0.92, 0.95]) + rng.uniform(-0.04, 0.02, (n, 1, 1, 3))
    bow = np.array([0.16, -0.16, 0.04])  # mid tones lose green first, as with eosin
    value = grey[..., None] ** 0.8
    colour = dark + (light - dark) * value + bow * value * (1 - value) * 2
    return np.asarray(np.clip(colour, 0, 1), dtype=np.float32)


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
