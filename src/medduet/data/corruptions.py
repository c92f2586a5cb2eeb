"""What spoils images of each modality on their way, at five severities.

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
SHARE = 0.5
"""Of the training images, those that the augmentation corrupts."""
_GREY = (0.299, 0.587, 0.114)
Chance = Sequence[torch.Generator]
Apply = Callable[[Tensor, Tensor, Chance], Tensor]
"""From images ``(N, C, H, W)`` in [0, 1], a level ``(N, 1, 1, 1)`` and a generator for each."""


class Corruption(NamedTuple):
    """One way in which an image is spoilt.

    Attributes:
        kind: ``noise``, ``blur``, ``digital``, ``colour`` or ``optics``.
        levels: how strong each severity is.
        apply: does it; what leaves [0, 1] is cut off afterwards.
    """

    kind: str
    levels: tuple[float, float, float, float, float]
    apply: Apply


def _drawn(draw: Callable[..., Tensor], image: Tensor, chance: Chance) -> Tensor:
    each = [draw(image.shape[1:], generator=own, device=image.device) for own in chance]
    return torch.stack(each)


def _gaussian_noise(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    return image + level * _drawn(torch.randn, image, chance)


def _speckle_noise(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    return image * (1 + level * _drawn(torch.randn, image, chance))


def _shot_noise(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    expected = image * level
    counts = [
        torch.poisson(own, generator=each) for own, each in zip(expected, chance, strict=True)
    ]
    return torch.stack(counts) / level


def _impulse_noise(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    drawn = _drawn(torch.rand, image, chance)
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


def _gaussian_blur(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    three, x = _reach(image, 3 * level)
    kernel = torch.exp(-0.5 * (x * 3 / three).square())
    return _filtered(_filtered(image, kernel), kernel.mT)


def _defocus_blur(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    radius, x = _reach(image, level)
    return _filtered(image, (radius + 0.5 - torch.hypot(x[:, None], x)).clamp(0, 1))


def _motion_blur(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    half, x = _reach(image, level / 2)
    drawn = [torch.rand(1, 1, generator=own, device=image.device) for own in chance]
    angle = torch.pi * torch.stack(drawn)
    along, beside = (
        x * angle.cos() + x[:, None] * angle.sin(),
        x * angle.sin() - x[:, None] * angle.cos(),
    )
    near = (half + 0.5 - along.abs()).clamp(0, 1)
    return _filtered(image, near * (1 - beside.abs()).clamp(0, 1))


def _pixelate(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    (height, width), found = image.shape[-2:], []
    for own, share in zip(image, level.flatten().tolist(), strict=True):
        small = max(1, round(height * share)), max(1, round(width * share))
        coarse = F.adaptive_avg_pool2d(own[None], small)
        found.append(F.interpolate(coarse, size=(height, width), mode="nearest-exact"))
    return torch.cat(found)


def _jpeg(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    pixels, found = (image * 255).round().to(torch.uint8).movedim(1, 3).cpu().numpy(), []
    for own, quality in zip(pixels, level.flatten().tolist(), strict=True):
        picture = Image.fromarray(own.squeeze(2) if own.shape[2] == 1 else own)
        picture.save(file := io.BytesIO(), "jpeg", quality=round(quality))
        found.append(torch.from_numpy(np.array(Image.open(file))).reshape(own.shape))
    return torch.stack(found).movedim(3, 1).to(image) / 255


def _brightness(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    return image * level


def _contrast(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return mean + level * (image - mean)


def _gamma(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    return image**level


def _saturation(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    weights = image.new_tensor(_GREY)[:, None, None]
    grey = (image * weights).sum(dim=1, keepdim=True)
    return grey + level * (image - grey)


def _dark_corners(image: Tensor, level: Tensor, chance: Chance) -> Tensor:
    rows, columns = (
        torch.arange(side, device=image.device) - (side - 1) / 2 for side in image.shape[-2:]
    )
    from_centre = 2 * torch.hypot(rows[:, None], columns) / min(image.shape[-2:])
    return image * (from_centre <= level)


CORRUPTIONS: dict[str, Corruption] = {
    # Standard deviation; photons where it is white; standard deviation of a factor; share.
    "gaussian_noise": Corruption("noise", (0.04, 0.08, 0.12, 0.18, 0.26), _gaussian_noise),
    "shot_noise": Corruption("noise", (100, 60, 30, 15, 8), _shot_noise),
    "speckle_noise": Corruption("noise", (0.1, 0.2, 0.3, 0.4, 0.5), _speckle_noise),
    "impulse_noise": Corruption("noise", (0.01, 0.03, 0.06, 0.1, 0.17), _impulse_noise),
    # Standard deviation, radius and length, as shares of the shorter side.
    "gaussian_blur": Corruption("blur", (0.012, 0.018, 0.025, 0.035, 0.05), _gaussian_blur),
    "defocus_blur": Corruption("blur", (0.025, 0.035, 0.045, 0.06, 0.08), _defocus_blur),
    "motion_blur": Corruption("blur", (0.06, 0.09, 0.12, 0.15, 0.18), _motion_blur),
    # Share of the pixels of a side that are left; quality of JPEG.
    "pixelate": Corruption("digital", (0.7, 0.5, 0.4, 0.3, 0.2), _pixelate),
    "jpeg": Corruption("digital", (50, 30, 15, 10, 7), _jpeg),
    # Factors, exponents, and the radius of what is seen in halves of the shorter side.
    "brightness_up": Corruption("colour", (1.2, 1.4, 1.6, 1.8, 2.0), _brightness),
    "brightness_down": Corruption("colour", (0.8, 0.65, 0.5, 0.4, 0.3), _brightness),
    "contrast_up": Corruption("colour", (1.2, 1.4, 1.6, 1.9, 2.2), _contrast),
    "contrast_down": Corruption("colour", (0.8, 0.6, 0.45, 0.3, 0.2), _contrast),
    "gamma_up": Corruption("colour", (1.2, 1.4, 1.7, 2.0, 2.5), _gamma),
    "gamma_down": Corruption("colour", (0.85, 0.7, 0.55, 0.45, 0.35), _gamma),
    "saturation_up": Corruption("colour", (1.3, 1.6, 2.0, 2.5, 3.0), _saturation),
    "saturation_down": Corruption("colour", (0.75, 0.5, 0.35, 0.2, 0.0), _saturation),
    "dark_corners": Corruption("optics", (1.15, 1.05, 0.95, 0.85, 0.75), _dark_corners),
}
_ALWAYS = ("pixelate", "jpeg")
_NOISE = tuple(name for name, each in CORRUPTIONS.items() if each.kind == "noise")
_LIGHT = ("brightness_up", "brightness_down", "contrast_up", "contrast_down")
_GAMMA = ("gamma_up", "gamma_down")
_COLOUR = ("saturation_up", "saturation_down")
_SCAN = (*_NOISE, "gaussian_blur", *_LIGHT, *_GAMMA)
_OF: dict[Modality, tuple[str, ...]] = {
    "xray": _SCAN,
    "ct": _SCAN,
    "mri": ("gaussian_noise", "speckle_noise", "gaussian_blur", "motion_blur", *_LIGHT, *_GAMMA),
    "ultrasound": ("speckle_noise", "motion_blur", *_LIGHT[:2], "contrast_down"),
    "fundus": (
        *("gaussian_noise", "speckle_noise", "defocus_blur", "motion_blur"),
        *("brightness_down", "contrast_down"),
    ),
    "oct": ("speckle_noise", "defocus_blur", "motion_blur", "contrast_down"),
    "dermoscopy": (*_NOISE, "defocus_blur", "motion_blur", *_LIGHT, "dark_corners"),
    "microscopy": ("defocus_blur", "motion_blur", *_LIGHT, *_COLOUR),
}


def corruptions_of(modality: Modality, channels: int) -> tuple[str, ...]:
    """Return the names of what may happen to images of a modality.

    Of an unknown one (``"auto"``) it is all of `CORRUPTIONS` but dark corners; grey images have no
    saturation.

    Example:
        >>> corruptions_of("oct", 1)
        ('speckle_noise', 'defocus_blur', 'motion_blur', 'pixelate', 'jpeg', 'contrast_down')
    """
    own = {*_OF.get(modality, set(CORRUPTIONS) - {"dark_corners"}), *_ALWAYS}
    return tuple(
        name for name in CORRUPTIONS if name in own and (channels == 3 or name not in _COLOUR)
    )


def corrupt(
    image: Tensor, name: str, severity: Tensor | Sequence[int], seeds: Sequence[int]
) -> Tensor:
    """Return images as one corruption leaves them.

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
    one = CORRUPTIONS[name]
    level = torch.tensor([one.levels[int(each) - 1] for each in severity], device=image.device)
    chance = [torch.Generator(image.device).manual_seed(int(seed)) for seed in seeds]
    spoilt = one.apply(image / 255, level[:, None, None, None], chance)
    return (spoilt * 255).round().clamp(0, 255).to(torch.uint8)


Spoil = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]
"""From an image ``(H, W)`` or ``(H, W, 3)``, a severity and a seed."""


def spoiler(name: str) -> Spoil:
    """Return the corruption called `name` as a function of one image in numpy."""

    def spoil(image: NDArray[np.uint8], severity: int, seed: int) -> NDArray[np.uint8]:
        pixels = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)
        found = corrupt(pixels[None], name, [severity], [seed])[0].permute(1, 2, 0).numpy()
        return found.reshape(image.shape)

    return spoil


class _Corrupted(Rows):
    """The images of a split, each spoilt when it is read, one at a time: always to the same."""

    def __init__(self, images: Images, name: str, severity: int, spoil: Spoil) -> None:
        super().__init__([images], np.arange(len(images)))
        self.name, self.severity, self.spoil = name, severity, spoil

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        found = super().__getitem__(key)
        for place, row in enumerate(self.rows[key].tolist()):
            seed = zlib.crc32(f"{self.name} {self.severity} {row}".encode())
            found[place] = self.spoil(found[place], self.severity, seed)
        return found


def corrupted(split: Split, name: str, severity: int, spoil: Spoil | None = None) -> Split:
    """Return a split whose images are spoilt as they are read; nothing is copied.

    The same image of the split is spoilt to the same pixels each time, in whatever batch.

    Args:
        split: of uint8 images.
        name: of the corruption, in `CORRUPTIONS`.
        severity: 1 to 5.
        spoil: does it instead, if it is no corruption of ours.

    Example:
        >>> import medduet
        >>> split = medduet.open_images("phantom", size=16, count=20).test
        >>> spoilt = corrupted(split, "contrast_down", 5)
        >>> bool(spoilt.images[:2].std() < 0.3 * split.images[:2].std())
        True
    """
    images = _Corrupted(split.images, name, severity, spoil or spoiler(name))
    return replace(split, images=images)


def corrupting(names: Sequence[str]) -> Callable[[Batch], Batch]:
    """Return an augmentation that spoils a share `SHARE` of the images, each in one of these ways.

    Way and severity are drawn evenly for each image, from torch's global generator on the CPU.
    """

    def augment(batch: Batch) -> Batch:
        count, image = len(batch.image), batch.image.clone()
        spoil = torch.rand(count) < SHARE
        way, severity = torch.randint(len(names), (count,)), torch.randint(1, 6, (count,))
        seeds = torch.randint(2**31, (count,))
        for number in sorted({*way[spoil].tolist()}):
            here = torch.nonzero(spoil & (way == number))[:, 0]
            place = here.to(image.device)
            image[place] = corrupt(
                image[place], names[number], severity[here], seeds[here].tolist()
            )
        return batch._replace(image=image.float() / 255)

    return augment
