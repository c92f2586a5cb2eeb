"""The corruptions of MedMNIST-C, at five severities.

Kinds, strengths per MedMNIST set and formulas are those of the package medmnistc 0.1.0 (Di Salvo et
al., arXiv:2406.17536), whose images are 224 pixels wide: pixels are the same there, and at other
sizes lengths are scaled. ``docs/stress.md`` says what differs. But for the zoom of ``zoom_blur``
nothing moves, so that masks stay true.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import rgb_to_grayscale

from medduet.config import Modality
from medduet.data.imageset import Images, ImageSet, Rows, Split
from medduet.data.modality import MEDMNIST, known_modality
from medduet.types import Batch

SEVERITIES = (1, 2, 3, 4, 5)
AUGMENTED_SHARE = 0.5
"""Of the training images, those that the augmentation corrupts."""
_COLOUR = ("pathmnist", "bloodmnist", "dermamnist", "retinamnist")
_SIDE = 224
_KINDS = {
    "digital": "pixelate jpeg_compression",
    "noise": "gaussian_noise speckle_noise impulse_noise shot_noise",
    "blur": "defocus_blur motion_blur zoom_blur gaussian_blur",
    "color": "brightness_up brightness_down contrast_up contrast_down saturate",
    "task-specific": "stain_deposit bubble black_corner characters gamma_corr_up gamma_corr_down",
}
# At each severity: the share of a side's pixels that are left; the quality of JPEG; of noise the
# standard deviation (of a factor for speckle), the share of pixels, and photons where it is white;
# of blurs, in pixels of an image 224 wide: radius and softening, radius and standard deviation,
# last zoom and its step, size of the kernel; factors; what saturation gains; marks and their size;
# largest radius and number of bubbles; radius that is seen, in halves of a side; words, letters and
# the size of the font; exponents. Then the sets.
_TABLE = """
pixelate 0.3 0.25 0.2 0.15 0.1 oct breast chest | 0.7 0.6 0.5 0.4 0.35 organa mri
pixelate 0.8 0.7 0.6 0.5 0.4 pneumonia | 0.4 0.3 0.2 0.15 0.1 tissue | 0.8 0.6 0.5 0.4 0.35 retina
pixelate 0.6 0.5 0.4 0.3 0.25 blood | 0.7 0.5 0.4 0.3 0.25 derma | 0.8 0.6 0.4 0.3 0.25 path
jpeg_compression 50 30 15 10 7 path blood breast chest pneumonia mri organa | 25 20 15 10 7 tissue
jpeg_compression 30 25 20 10 5 retina | 30 20 15 10 7 derma | 30 15 10 7 5 oct
gaussian_noise 0.04 0.08 0.12 0.16 0.2 retina organa mri | 0.04 0.08 0.12 0.18 0.26 derma chest
gaussian_noise 0.04 0.05 0.06 0.07 0.08 pneumonia
speckle_noise 0.05 0.15 0.2 0.35 0.45 derma chest | 0.1 0.15 0.2 0.25 0.3 retina breast
speckle_noise 0.05 0.07 0.1 0.15 0.2 pneumonia | 0.05 0.1 0.2 0.3 0.4 organa mri
speckle_noise 0.15 0.3 0.4 0.5 0.6 oct
impulse_noise 0.005 0.01 0.013 0.017 0.02 pneumonia | 0.01 0.03 0.06 0.09 0.17 derma chest
impulse_noise 0.01 0.02 0.03 0.05 0.08 organa mri | 0.01 0.015 0.02 0.025 0.03 tissue
shot_noise 300 200 150 100 80 pneumonia | 200 100 50 25 15 organa mri | 60 25 18 10 5 derma chest
defocus_blur 4,0.1 5,0.2 6,0.3 7,0.4 8,0.5 derma retina | 0.5,0.6 1,0.5 1.5,0.1 2,0.5 2.5,0.1 oct
defocus_blur 2,0.01 3,0.1 4,0.1 5,0.1 6,0.1 blood | 3,0.1 4,0.1 5,0.2 6,0.2 7,0.3 path
motion_blur 5,5 9,7 9,10 13,10 17,12 breast mri | 10,5 15,5 15,8 15,12 20,15 derma
motion_blur 8,5 15,5 15,8 15,12 20,15 retina | 10,3 15,5 15,8 15,12 20,15 oct
motion_blur 5,5 10,5 15,5 15,8 15,12 path | 3,3 5,5 10,5 10,7 10,9 blood
zoom_blur 1.11,0.01 1.16,0.01 1.21,0.02 1.26,0.02 1.31,0.03 derma
gaussian_blur 3 5 7 9 11 chest pneumonia | 11 13 15 17 21 organa mri | 13 15 17 21 25 tissue
brightness_up 1.1 1.2 1.3 1.4 1.5 derma chest pneumonia | 1.2 1.3 1.4 1.5 1.6 organa mri
brightness_up 1.1 1.15 1.2 1.22 1.25 path | 1.1 1.2 1.3 1.35 1.4 blood | 1.3 1.4 1.5 1.6 1.7 tissue
brightness_up 1.4 1.5 1.6 1.8 2 breast
brightness_down 0.9 0.8 0.7 0.6 0.5 blood derma retina chest pneumonia | 0.85 0.8 0.75 0.72 0.7 path
brightness_down 0.8 0.75 0.7 0.65 0.6 organa mri | 0.55 0.5 0.45 0.4 0.3 breast
brightness_down 0.8 0.7 0.6 0.5 0.4 tissue
contrast_up 1.1 1.2 1.3 1.4 1.6 path tissue derma chest pneumonia | 1.3 1.4 1.6 1.7 1.8 organa mri
contrast_up 1.1 1.15 1.2 1.25 1.3 blood
contrast_down 0.9 0.8 0.7 0.6 0.4 tissue retina breast chest pneumonia | 0.9 0.8 0.7 0.6 0.5 blood
contrast_down 0.8 0.7 0.6 0.55 0.5 path organa mri | 0.8 0.7 0.6 0.5 0.4 derma
contrast_down 0.6 0.4 0.3 0.2 0.15 oct
saturate 0.05 0.1 0.15 0.17 0.2 blood | 0.05 0.1 0.15 0.2 0.25 path
stain_deposit 1,24 2,24 3,24 3,24 3,30 blood | 1,24 2,24 3,24 4,24 5,30 path
bubble 7,15 10,15 12,15 15,20 17,25 path | 5,10 7,10 10,10 12,12 15,12 blood
black_corner 1.1 1.05 1 0.9 0.95 derma
characters 1,6,0.14 2,7,0.15 3,8,0.16 4,9,0.17 6,10,0.18 derma
gamma_corr_up 1.1 1.2 1.3 1.4 1.6 chest pneumonia | 1.3 1.4 1.6 1.8 2 organa mri
gamma_corr_down 0.9 0.8 0.7 0.6 0.4 chest pneumonia organa mri
"""
_DEFAULTS = ("dermamnist", "chestmnist", "pathmnist")  # for a kind that the list lacks


class Corruption(NamedTuple):
    """One way in which an image is corrupted: its kind, and by list the levels per severity."""

    kind: str
    levels: dict[str, list[list[float]]]


CORRUPTIONS = {n: Corruption(kind, {}) for kind, names in _KINDS.items() for n in names.split()}
for _name, _rows in (line.split(maxsplit=1) for line in _TABLE.strip().splitlines()):
    for _words in map(str.split, _rows.split("|")):
        _levels = [[float(number) for number in word.split(",")] for word in _words[:5]]
        for _set in _words[5:]:
            CORRUPTIONS[_name].levels["mri" if _set == "mri" else f"{_set}mnist"] = _levels


def corruptions_of(data: ImageSet, modality: Modality) -> tuple[str, list[str]]:
    """Return whose corruptions images get, and their names.

    Whose: those of the images' own MedMNIST set, or of the one that stands for their modality;
    ``"mri"`` isn't in MedMNIST-C. Of modality ``"auto"``: all but the task-specific ones.

    Example:
        >>> from medduet import open_images
        >>> corruptions_of(open_images("phantom", channels=1), "xray")[0]
        'chestmnist'
    """
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
            small = [max(1, int(side * level[0])) for side in picture.size]
            return picture.resize(small, Image.Resampling.BOX).resize(
                picture.size, Image.Resampling.BOX
            )
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


def corrupt_randomly(listing: str, names: Sequence[str]) -> Callable[[Batch], Batch]:
    """Return an augmentation that corrupts `AUGMENTED_SHARE` of the images, each in one way."""

    def augment(batch: Batch) -> Batch:
        count, image = len(batch.image), batch.image.clone()
        chosen = torch.rand(count) < AUGMENTED_SHARE
        limits = (0, len(names)), (1, 6), (0, 2**31)  # of corruption, severity and seed
        drawn = [torch.randint(low, high, (count,)).tolist() for low, high in limits]
        for row in torch.nonzero(chosen)[:, 0].tolist():
            number, severity, seed = (values[row] for values in drawn)
            image[row] = corrupt(image[row], names[number], severity, seed, listing)
        return batch._replace(image=image.float() / 255)

    return augment
