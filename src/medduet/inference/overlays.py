"""Predictions as pictures: the mask as a file, and over the image."""

import io

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from medduet.utils.palette import HEAT, mask_color, mask_colors

_FILL, _HEAT = 0.35, 0.6


def mask_png(mask: NDArray[np.uint8]) -> bytes:
    """Return a mask ``(H, W)`` as PNG whose values are the classes and whose palette shows them."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette([level for colour in mask_colors(256) for level in colour])
    return _png(image)


def overlay_png(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` with its mask ``(H, W)`` over it, as PNG."""
    pixels = _rgb(image)
    for number in np.unique(mask[mask > 0]).tolist():
        here, colour = mask == number, np.array(mask_color(number), np.float32)
        edge = here & ~binary_erosion(here, iterations=max(1, min(mask.shape) // 256))
        pixels[here] += _FILL * (colour - pixels[here])
        pixels[edge] = colour
    return _png(Image.fromarray(np.rint(pixels).astype(np.uint8)))


def heatmap_png(image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> bytes:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` with its heat map ``(H, W)``, 0 to 1, as PNG."""
    pixels = _rgb(image)
    colour = colormaps[HEAT](heatmap)[..., :3].astype(np.float32) * 255
    pixels += _HEAT * heatmap[..., None] * (colour - pixels)
    return _png(Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8)))


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = image.astype(np.float32)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _png(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "png")
    return file.getvalue()
