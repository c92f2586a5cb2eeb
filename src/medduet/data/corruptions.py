"""Corruptions that are typical of each modality, at five severities.

In the manner of MedMNIST-C (Di Salvo et al., arXiv:2406.17536): which corruptions a modality has is
theirs, as far as they are here; the levels are ours, and lengths are shares of the image's shorter
side, so that they look alike at any size. Nothing moves a pixel, so that masks stay true.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from medduet.config import Modality
from medduet.data.imageset import Images, Rows, Split
from medduet.types import Batch

SEVERITIES = (1, 2, 3, 4, 5)
AUGMENTED_SHARE = 0.5
"""Of the training images, those that the augmentation corrupts."""
_GREY = (0.299, 0.587, 0.114)
Generators = Sequence[torch.Generator]
Apply = Callable[[Tensor, Tensor, Generators], Tensor]
"""From images ``(N, C, H, W)`` in [0, 1], a level ``(N, 1, 1, 1)`` and a generator for each."""


class Corruption(NamedTuple):
    """One way in which an image is corrupted.

    Attributes:
        kind: ``noise``, ``blur``, ``digital``, ``colour`` or ``optics``.
        levels: how strong each severity is.
        apply: does it; what leaves [0, 1] is cut off afterwards.
        modalities: of whose images it is typical; empty for all.
        colour: whether it is for RGB images alone.
    """

    kind: str
    levels: tuple[float, float, float, float, float]
    apply: Apply
    modalities: str = ""
    colour: bool = False


def _draw(draw: Callable[..., Tensor], image: Tensor, generators: Generators) -> Tensor:
    return torch.stack(
        [draw(image.shape[1:], generator=g, device=image.device) for g in generators]
    )


def _gaussian_noise(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    return image + level * _draw(torch.randn, image, generators)


def _speckle_noise(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    return image * (1 + level * _draw(torch.randn, image, generators))


def _shot_noise(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    pairs = zip(image * level, generators, strict=True)
    return torch.stack([torch.poisson(photons, generator) for photons, generator in pairs]) / level


def _impulse_noise(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    drawn = _draw(torch.rand, image, generators)
    return torch.where(drawn < level, (drawn < level / 2).to(image.dtype), image)


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Return each image filtered by its own kernel ``(N, height, width)`` of odd sides."""
    count, channels = image.shape[:2]
    down, across = (side // 2 for side in kernel.shape[1:])
    padded = F.pad(image, [across, across, down, down], mode="replicate")
    weights = kernel / kernel.sum(dim=(1, 2), keepdim=True)
    weights = weights.repeat_interleave(channels, 0).unsqueeze(1)
    return F.conv2d(padded.flatten(0, 1)[None], weights, groups=count * channels).view_as(image)


def _reach(image: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths in pixels ``(N, 1, 1)``, and whole places around 0 that reach as far."""
    pixels = length[:, 0] * min(image.shape[-2:])
    most = int(pixels.max().ceil())
    return pixels, torch.arange(-most, most + 1, device=image.device, dtype=image.dtype)


def _gaussian_blur(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    three, x = _reach(image, 3 * level)
    kernel = torch.exp(-0.5 * (x * 3 / three).square())
    return _filtered(_filtered(image, kernel), kernel.mT)


def _defocus_blur(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    radius, x = _reach(image, level)
    return _filtered(image, (radius + 0.5 - torch.hypot(x[:, None], x)).clamp(0, 1))


def _motion_blur(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    half, x = _reach(image, level / 2)
    turns = [torch.rand(1, 1, generator=g, device=image.device) for g in generators]
    angle = torch.pi * torch.stack(turns)
    along, beside = (
        x * angle.cos() + x[:, None] * angle.sin(),
        x * angle.sin() - x[:, None] * angle.cos(),
    )
    near = (half + 0.5 - along.abs()).clamp(0, 1)
    return _filtered(image, near * (1 - beside.abs()).clamp(0, 1))


def _pixelate(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    (height, width), coarse = image.shape[-2:], []
    for pixels, share in zip(image, level.flatten().tolist(), strict=True):
        size = max(1, round(height * share)), max(1, round(width * share))
        small = F.adaptive_avg_pool2d(pixels[None], size)
        coarse.append(F.interpolate(small, size=(height, width), mode="nearest-exact"))
    return torch.cat(coarse)


def _jpeg(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    decoded = []
    arrays = (image * 255).round().to(torch.uint8).movedim(1, 3).cpu().numpy()
    for pixels, quality in zip(arrays, level.flatten().tolist(), strict=True):
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        picture.save(file := io.BytesIO(), "jpeg", quality=round(quality))
        decoded.append(torch.from_numpy(np.array(Image.open(file))).reshape(pixels.shape))
    return torch.stack(decoded).movedim(3, 1).to(image) / 255


def _contrast(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return mean + level * (image - mean)


def _saturation(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    weights = image.new_tensor(_GREY)[:, None, None]
    grey = (image * weights).sum(dim=1, keepdim=True)
    return grey + level * (image - grey)


def _dark_corners(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    rows, columns = (
        torch.arange(side, device=image.device) - (side - 1) / 2 for side in image.shape[-2:]
    )
    from_centre = 2 * torch.hypot(rows[:, None], columns) / min(image.shape[-2:])
    return image * (from_centre <= level)


def _brightness(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    return image * level


def _gamma(image: Tensor, level: Tensor, generators: Generators) -> Tensor:
    return image**level


_SCAN, _CAMERA = "xray ct mri ", "dermoscopy microscopy "
_NOISY, _TURBID = "xray ct dermoscopy", _CAMERA + "fundus oct "
_SPECKLED = _SCAN + "ultrasound fundus oct dermoscopy"
_LIT = _SCAN + _CAMERA
CORRUPTIONS: dict[str, Corruption] = {
    # Standard deviation; photons where it is white; standard deviation of a factor; share.
    "gaussian_noise": Corruption(
        "noise", (0.04, 0.08, 0.12, 0.18, 0.26), _gaussian_noise, _NOISY + " mri fundus"
    ),
    "shot_noise": Corruption("noise", (100, 60, 30, 15, 8), _shot_noise, _NOISY),
    "speckle_noise": Corruption("noise", (0.1, 0.2, 0.3, 0.4, 0.5), _speckle_noise, _SPECKLED),
    "impulse_noise": Corruption("noise", (0.01, 0.03, 0.06, 0.1, 0.17), _impulse_noise, _NOISY),
    # Standard deviation, radius and length, as shares of the shorter side.
    "gaussian_blur": Corruption("blur", (0.012, 0.018, 0.025, 0.035, 0.05), _gaussian_blur, _SCAN),
    "defocus_blur": Corruption("blur", (0.025, 0.035, 0.045, 0.06, 0.08), _defocus_blur, _TURBID),
    "motion_blur": Corruption(
        "blur", (0.06, 0.09, 0.12, 0.15, 0.18), _motion_blur, _TURBID + "mri ultrasound"
    ),
    # Share of the pixels of a side that are left; quality of JPEG.
    "pixelate": Corruption("digital", (0.7, 0.5, 0.4, 0.3, 0.2), _pixelate),
    "jpeg": Corruption("digital", (50, 30, 15, 10, 7), _jpeg),
    # Factors, exponents, and the radius of what is seen in halves of the shorter side.
    "brightness_up": Corruption(
        "colour", (1.2, 1.4, 1.6, 1.8, 2.0), _brightness, _LIT + "ultrasound"
    ),
    "brightness_down": Corruption(
        "colour", (0.8, 0.65, 0.5, 0.4, 0.3), _brightness, _LIT + "ultrasound fundus"
    ),
    "contrast_up": Corruption("colour", (1.2, 1.4, 1.6, 1.9, 2.2), _contrast, _LIT),
    "contrast_down": Corruption("colour", (0.8, 0.6, 0.45, 0.3, 0.2), _contrast),
    "gamma_up": Corruption("colour", (1.2, 1.4, 1.7, 2.0, 2.5), _gamma, _SCAN),
    "gamma_down": Corruption("colour", (0.85, 0.7, 0.55, 0.45, 0.35), _gamma, _SCAN),
    "saturation_up": Corruption("colour", (1.3, 1.6, 2, 2.5, 3), _saturation, "microscopy", True),
    "saturation_down": Corruption(
        "colour", (0.75, 0.5, 0.35, 0.2, 0.0), _saturation, "microscopy", True
    ),
    "dark_corners": Corruption(
        "optics", (1.15, 1.05, 0.95, 0.85, 0.75), _dark_corners, "dermoscopy"
    ),
}


def corruptions_of(modality: Modality, channels: int) -> tuple[str, ...]:
    """Return the names of the corruptions that are typical of a modality.

    Of an unknown one (``"auto"``) it is all of `CORRUPTIONS` but dark corners; grey images have no
    saturation.

    Example:
        >>> corruptions_of("oct", 1)
        ('speckle_noise', 'defocus_blur', 'motion_blur', 'pixelate', 'jpeg', 'contrast_down')
    """
    return tuple(
        name
        for name, corruption in CORRUPTIONS.items()
        if (channels == 3 or not corruption.colour)
        and (name != "dark_corners" or modality == "dermoscopy")
        and (modality == "auto" or modality in (corruption.modalities.split() or [modality]))
    )


def corrupt(
    image: Tensor, name: str, severity: Tensor | Sequence[int], seeds: Sequence[int]
) -> Tensor:
    """Return images with one corruption applied.

    Args:
        image: ``(N, C, H, W)`` uint8, on any device; RGB for a change of saturation.
        name: of the corruption, in `CORRUPTIONS`.
        severity: ``(N,)``, 1 to 5 for each image.
        seeds: ``(N,)``, what chance does to each; the same seed does the same on the same kind of
            device.

    Returns:
        ``(N, C, H, W)`` uint8.

    Example:
        >>> image = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
        >>> corrupt(image, "brightness_up", [1, 5], [0, 0])[:, 0, 0, 0].tolist()
        [120, 200]
    """
    corruption = CORRUPTIONS[name]
    levels = [corruption.levels[int(each) - 1] for each in severity]
    level = torch.tensor(levels, device=image.device)[:, None, None, None]
    generators = [torch.Generator(image.device).manual_seed(int(seed)) for seed in seeds]
    corrupted = corruption.apply(image / 255, level, generators)
    return (corrupted * 255).round().clamp(0, 255).to(torch.uint8)


class _CorruptedRows(Rows):
    """The images of a split, each corrupted when it is read, one at a time: always to the same."""

    def __init__(self, images: Images, name: str, severity: int) -> None:
        super().__init__([images], np.arange(len(images)))
        self.name, self.severity = name, severity

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        images = super().__getitem__(key)
        for image, row in zip(images, self.rows[key].tolist(), strict=True):
            seed = zlib.crc32(f"{self.name} {self.severity} {row}".encode())
            pixels = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None]
            result = corrupt(pixels, self.name, [self.severity], [seed])[0]
            image[:] = result.permute(1, 2, 0).reshape(image.shape).numpy()
        return images


def corrupt_split(split: Split, name: str, severity: int) -> Split:
    """Return a split whose images are corrupted as they are read; nothing is copied.

    The same image of the split becomes the same pixels each time, in whatever batch.

    Args:
        split: of uint8 images.
        name: of the corruption, in `CORRUPTIONS`.
        severity: 1 to 5.

    Example:
        >>> import medduet
        >>> split = medduet.open_images("phantom", size=16, count=20).test
        >>> corrupted = corrupt_split(split, "contrast_down", 5)
        >>> bool(corrupted.images[:2].std() < 0.3 * split.images[:2].std())
        True
    """
    return replace(split, images=_CorruptedRows(split.images, name, severity))


def corrupt_randomly(names: Sequence[str]) -> Callable[[Batch], Batch]:
    """Return an augmentation that corrupts `AUGMENTED_SHARE` of the images, each in one way.

    Way and severity are drawn evenly for each image, from torch's global generator on the CPU.
    """

    def augment(batch: Batch) -> Batch:
        count, image = len(batch.image), batch.image.clone()
        chosen = torch.rand(count) < AUGMENTED_SHARE
        way, severity = torch.randint(len(names), (count,)), torch.randint(1, 6, (count,))
        seeds = torch.randint(2**31, (count,))
        for number in sorted({*way[chosen].tolist()}):
            here = torch.nonzero(chosen & (way == number))[:, 0]
            place = here.to(image.device)
            image[place] = corrupt(
                image[place], names[number], severity[here], seeds[here].tolist()
            )
        return batch._replace(image=image.float() / 255)

    return augment
