"""The corruptions of MedMNIST-C, at five severities.

Kinds, strengths per MedMNIST set and formulas are those of the package medmnistc 0.1.0 (Di Salvo et
al., arXiv:2406.17536), whose images are 224 pixels wide: pixels are the same there, and at other
sizes lengths are scaled. ``docs/stress.md`` says what differs. But for the zoom of ``zoom_blur``
nothing moves, so that masks stay true. ``corruptions.yaml`` has kinds and strengths.
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import rgb_to_grayscale

from medduet.data.imageset import Images, ImageSet, Rows, Split
from medduet.data.modality import MEDMNIST, known_modality
from medduet.types import Modality

SEVERITIES = (1, 2, 3, 4, 5)
_COLOUR = ("pathmnist", "bloodmnist", "dermamnist", "retinamnist")
_SIDE = 224
_DEFAULTS = ("dermamnist", "chestmnist", "pathmnist")  # for a kind that the list lacks


class Corruption(NamedTuple):
    """One way in which an image is corrupted: its kind, and by set the level of each severity."""

    kind: str
    levels: dict[str, list[list[float]]]


CORRUPTIONS = {
    name: Corruption(kind, {x: np.reshape(each, (5, -1)).tolist() for x, each in levels.items()})
    for kind, names in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items()
    for name, levels in names.items()
}


def corruptions_of(data: ImageSet, modality: Modality) -> tuple[str, list[str]]:
    """Return whose corruptions images get, and their names.

    Whose: those of the images' own MedMNIST set, or of the one that stands for their modality;
    ``"mri"`` isn't in MedMNIST-C. Of modality ``"auto"``: all but the task-specific ones.

    Example:
        >>> from medduet import open_images
        >>> corruptions_of(open_images("phantom", channels=1), "xray")[0]
        'chestmnist'
    """
    data.expect_images("corruptions")
    modality, listing = known_modality(data.info, modality), data.info.get("medmnist", "")
    if MEDMNIST.get(listing) != modality or listing not in CORRUPTIONS["pixelate"].levels:
        listing = next((name for name, each in MEDMNIST.items() if each == modality), modality)
        listing = "tissuemnist" if (modality, data.in_channels) == ("microscopy", 1) else listing
    names = [name for name, kind in CORRUPTIONS.items() if listing in kind.levels]
    if listing == "auto":
        names = [name for name, kind in CORRUPTIONS.items() if kind.kind != "task-specific"]
    return listing, [name for name in names if data.in_channels == 3 or name != "saturate"]


def corrupt(image: Tensor, name: str, severity: int, seed: int, listing: str = "auto") -> Tensor:
    """Return an image ``(C, H, W)`` uint8, on any device, corrupted at a severity of 1 to 5."""
    kind, levels = CORRUPTIONS[name]
    level = next(levels[each] for each in (listing, *_DEFAULTS) if each in levels)[severity - 1]
    # The noise of a grey image is the grey of noise in three channels.
    colour = len(image) == 3 and (listing in _COLOUR or bool((image != image[:1]).any()))
    grey = kind == "noise" and not colour
    source = image[:1].expand(3, -1, -1) if grey else image
    corrupted = _apply(name, source.float(), level, seed)
    pixels = (corrupted + 1e-3).clamp(0, 255).to(torch.uint8)  # cut off, as the package does
    return rgb_to_grayscale(pixels.float(), len(image)).round().byte() if grey else pixels


def _apply(name: str, image: Tensor, level: Sequence[float], seed: int) -> Tensor:
    """Return what becomes of an image ``(C, H, W)`` in [0, 255]; cut off later."""
    generator, (height, width) = Generator(image.device).manual_seed(seed), image.shape[-2:]
    like: Any = {"generator": generator, "device": image.device}
    match name:
        case "gaussian_noise" | "speckle_noise":
            spread = image if name == "speckle_noise" else 255
            return image + level[0] * spread * torch.randn(image.shape, **like)
        case "shot_noise":
            return torch.poisson(image / 255 * level[0], generator) * 255 / level[0]
        case "impulse_noise":
            drawn = torch.rand(image.shape, **like)
            return torch.where(drawn < level[0], 255.0 * (drawn < level[0] / 2), image)
        case "zoom_blur":
            factors = np.arange(1, *level)
            down, across = (_zoom(side, factors).to(image) for side in (height, width))
            return (image + (down @ image @ across.mT).sum(dim=0)) / (len(factors) + 1)
        case "defocus_blur" | "gaussian_blur" | "motion_blur":
            return _blurred(name, image, level, seed)
        case "gamma_corr_up" | "gamma_corr_down":
            return 255.999 * (image / 255) ** level[0]
        case "saturate":
            value, chroma = image.amax(dim=0), image.amax(dim=0) - image.amin(dim=0)
            share = (value - image) / chroma.clamp(min=1)
            share[1:, chroma == 0] = 1  # grey turns red
            return value * (1 - share * (chroma / value.clamp(min=1) + level[0]).clamp(max=1))
        case "black_corner":
            down, across = (torch.arange(n, device=image.device) - n // 2 for n in (height, width))
            radius = int(min(height // 2, width // 2) * level[0])
            return image * (down[:, None] ** 2 + across**2 <= radius**2)
    pixels = image.to(torch.uint8).movedim(0, 2).cpu().numpy()
    picture = Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)
    corrupted = np.array(_drawn(name, picture, level, np.random.default_rng(seed)))
    return torch.from_numpy(corrupted.reshape(pixels.shape)).movedim(2, 0).to(image)


def _blurred(name: str, image: Tensor, level: Sequence[float], seed: int) -> Tensor:
    """Return an image after the kernel of the package, which is scaled with the image."""
    scale = min(image.shape[-2:]) / _SIDE
    grown = max(scale, 1.0)
    if name == "gaussian_blur":
        row = _bell(_around(grown * (level[0] - 1) / 2), grown * (0.15 * level[0] + 0.35))
        kernel = row * row[:, None]
    elif name == "defocus_blur":
        x, soft = _around(grown * max(level[0], 8)), _bell(_around(1), level[1])
        disk = (x.square() + x[:, None].square() <= (grown * level[0]) ** 2).float()
        padded = F.pad((disk / disk.sum())[None, None], [1] * 4, mode="reflect")
        kernel = F.conv2d(padded, (soft * soft[:, None])[None, None])[0, 0]
    else:  # a tail at an angle, with its centre where the pixel was
        angle = np.radians(np.random.default_rng(seed).uniform(-45, 45))
        x = torch.arange(2 * np.ceil(grown * level[0]) + 1)
        tail = _bell(x, grown * level[1])
        places = [torch.ceil(x * part - 0.5) for part in (np.sin(angle), np.cos(angle))]
        down, across = (((tail @ place).round() - place).long() for place in places)
        most = int(max(down.abs().max(), across.abs().max()))
        kernel = torch.zeros(2 * most + 1, 2 * most + 1)
        kernel.index_put_((down + most, across + most), tail, accumulate=True)
    if scale < 1:  # as if the image were enlarged, blurred, and shrunk again
        x = _around(len(kernel) // 2) * scale
        share = _shares(_around(x[-1].item()), x)
        kernel = share @ kernel @ share.T
    reach, mode = len(kernel) // 2, "replicate" if name == "motion_blur" else "reflect"
    padded = F.pad(image[None], [reach] * 4, mode=mode)[0]
    size = list(padded.shape[-2:])
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(image), s=size)
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)[:, 2 * reach :, 2 * reach :]
    return blurred.round() if name == "gaussian_blur" else blurred


def _around(reach: float) -> Tensor:
    return torch.arange(-np.ceil(reach), np.ceil(reach) + 1, dtype=torch.float32)


def _bell(x: Tensor, deviation: float) -> Tensor:
    weights = torch.exp(-0.5 * (x / deviation).square())
    return weights / weights.sum()


def _shares(rows: Tensor, columns: Tensor) -> Tensor:
    """Return how much of each column is in each row by linear interpolation of their places."""
    return (1 - (rows[..., None] - columns).abs()).clamp(min=0)


def _zoom(side: int, factors: NDArray[np.float64]) -> Tensor:
    """Return the matrices ``(factors, 1, side, side)`` that enlarge the middle, as scipy's zoom."""
    part, pixels = np.ceil(side / factors)[:, None], np.arange(side)
    large = np.round(part * factors[:, None])
    places = (pixels + (large - side) // 2) * (part - 1) / np.maximum(large - 1, 1)
    return _shares(torch.from_numpy(places + (side - part) // 2), torch.arange(side))[:, None]


def _drawn(
    name: str, picture: Image.Image, level: Sequence[float], rng: np.random.Generator
) -> Image.Image:
    """Return what Pillow makes of a picture, in grey or RGB."""
    match name:
        case "pixelate":
            box = Image.Resampling.BOX
            small = [max(1, int(side * level[0])) for side in picture.size]
            return picture.resize(small, box).resize(picture.size, box)
        case "jpeg_compression":
            picture.save(file := io.BytesIO(), "jpeg", quality=int(level[0]))
            return Image.open(file)
        case "brightness_up" | "brightness_down":
            return ImageEnhance.Brightness(picture).enhance(level[0])
        case "contrast_up" | "contrast_down":
            return ImageEnhance.Contrast(picture).enhance(level[0])
    scale, bubble = min(picture.size) / _SIDE, name == "bubble"
    width, height = (side / scale for side in picture.size)
    result, cover = picture.convert("RGB"), Image.new("L", picture.size)

    def between(low: float, high: float) -> int:
        return int(rng.integers(int(low), int(high), endpoint=True))

    for _ in range(between(7, level[1]) if bubble else between(1, level[0])):
        if name == "characters":
            count, size = between(3, level[1]), between(14, round(100 * level[2]))
            word = "".join(chr(between(ord("a"), ord("z"))) for _ in range(count))
            place = between(10, width - 8 * count) * scale, between(10, height - 10) * scale
            font = ImageFont.load_default(max(0.33 * size * scale, 1))
            colour = between(0, 255), between(0, 255), between(0, 255)
            ImageDraw.Draw(result).text(place, word, colour, font, anchor="ls")
            continue
        reach = between(3, level[0]) if bubble else level[1] * rng.uniform(0.32, 0.5)
        edge = reach if bubble else 10 + level[1] / 2
        centre = [scale * rng.uniform(edge, side - edge) for side in (width, height)]
        for rim, opacity in ((2, 130), (0, 100)) if bubble else ((0, 255),):
            ImageDraw.Draw(cover).circle(centre, scale * (reach + rim), opacity)
    result.paste((255, 255, 255) if bubble else (0, 0, 0), mask=cover)
    return result.convert(picture.mode)


class _CorruptedRows(Rows):
    """The images of a split, each corrupted when it is read: always to the same."""

    def __init__(self, images: Images, name: str, severity: int, listing: str) -> None:
        super().__init__([images], np.arange(len(images)))
        self.name, self.severity, self.listing = name, severity, listing

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        images = super().__getitem__(key)
        for image, row in zip(images, self.rows[key].tolist(), strict=True):
            seed = zlib.crc32(f"{self.name} {self.severity} {row}".encode())
            pixels = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)
            result = corrupt(pixels, self.name, self.severity, seed, self.listing)
            image[:] = result.permute(1, 2, 0).reshape(image.shape).numpy()
        return images


def corrupt_split(split: Split, name: str, severity: int, listing: str = "auto") -> Split:
    """Return a split whose images are corrupted as they are read, to the same pixels each time."""
    return replace(split, images=_CorruptedRows(split.images, name, severity, listing))
