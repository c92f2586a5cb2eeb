"""Predictions as pictures: the mask as a file, and over the image."""

import io

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from medduet.utils.palette import HEAT, MASK_RGB

_FILL, _HEAT = 0.35, 0.6


def mask_png(mask: NDArray[np.uint8], **options: int | bytes) -> bytes:
    """Return a mask ``(H, W)`` as PNG whose values are the classes and whose palette shows them."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette(b"".join(MASK_RGB))
    return png(image, **options)


def overlay_png(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` with its mask ``(H, W)`` over it, as PNG."""
    pixels = _rgb(image)
    for number in np.unique(mask[mask > 0]).tolist():
        region, colour = mask == number, np.array([*MASK_RGB[number]], np.float32)
        edge = region & ~binary_erosion(region, iterations=max(1, min(mask.shape) // 256))
        pixels[region] += _FILL * (colour - pixels[region])
        pixels[edge] = colour
    return png(Image.fromarray(np.rint(pixels).astype(np.uint8)))


def heatmap_png(image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` with its heat map ``(H, W)``, 0 to 1, as PNG."""
    pixels = _rgb(image)
    colour = colormaps[HEAT](heatmap)[..., :3].astype(np.float32) * 255
    pixels += _HEAT * heatmap[..., None] * (colour - pixels)
    return png(Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8)))


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = image.astype(np.float32)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def png(image: Image.Image, **options: int | bytes) -> bytes:
    """Return an image as a PNG file, with Pillow's `options`."""
    image.save(file := io.BytesIO(), "png", compress_level=3, **options)
    return file.getvalue()
