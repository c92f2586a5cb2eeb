"""Corruptions that are typical of each modality, at five severities.

In the manner of MedMNIST-C (Di Salvo et al., arXiv:2406.17536): which corruptions a modality has is
theirs, as far as they are here; the levels are ours, and lengths are shares of the image's shorter
side, so that they look alike at any size. Nothing moves a pixel, so that masks stay true.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from medduet.config import Modality
from medduet.data.imageset import Images, Rows, Split
from medduet.types import Batch

SEVERITIES = (1, 2, 3, 4, 5)
AUGMENTED_SHARE = 0.5
"""Of the training images, those that the augmentation corrupts."""
_GREY = (0.299, 0.587, 0.114)


def _apply(name: str, image: Tensor, level: float, generator: Generator) -> Tensor:
    """Return what becomes of an image ``(C, H, W)`` in [0, 1]; cut off later."""
    like: Any = {"generator": generator, "device": image.device}
    height, width = image.shape[-2:]
    match name.removesuffix("_up").removesuffix("_down"):
        case "gaussian_noise":
            return image + level * torch.randn(image.shape, **like)
        case "speckle_noise":
            return image * (1 + level * torch.randn(image.shape, **like))
        case "shot_noise":
            return torch.poisson(image * level, generator) / level
        case "impulse_noise":
            drawn = torch.rand(image.shape, **like)
            return torch.where(drawn < level, (drawn < level / 2).to(image.dtype), image)
        case "gaussian_blur":
            three, x = _reach(image, 3 * level)
            kernel = torch.exp(-0.5 * (x * 3 / three).square())[None]
            return _filtered(_filtered(image, kernel), kernel.mT)
        case "defocus_blur":
            radius, x = _reach(image, level)
            return _filtered(image, (radius + 0.5 - torch.hypot(x[:, None], x)).clamp(0, 1))
        case "motion_blur":
            half, x = _reach(image, level / 2)
            angle = torch.pi * torch.rand(1, **like)
            along = x * angle.cos() + x[:, None] * angle.sin()
            beside = x * angle.sin() - x[:, None] * angle.cos()
            near = (half + 0.5 - along.abs()).clamp(0, 1)
            return _filtered(image, near * (1 - beside.abs()).clamp(0, 1))
        case "pixelate":
            size = max(1, round(height * level)), max(1, round(width * level))
            small = F.adaptive_avg_pool2d(image[None], size)
            return F.interpolate(small, size=(height, width), mode="nearest-exact")[0]
        case "jpeg":
            return _jpeg(image, round(level))
        case "brightness":
            return image * level
        case "gamma":
            return image**level
        case "contrast":
            return image.mean() + level * (image - image.mean())
        case "saturation":
            grey = (image * image.new_tensor(_GREY)[:, None, None]).sum(dim=0, keepdim=True)
            return grey + level * (image - grey)
    rows = torch.arange(height, device=image.device) - (height - 1) / 2  # dark corners
    columns = torch.arange(width, device=image.device) - (width - 1) / 2
    from_centre = 2 * torch.hypot(rows[:, None], columns) / min(height, width)
    return image * (from_centre <= level)


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    down, across = (side // 2 for side in kernel.shape)
    padded = F.pad(image[None], [across, across, down, down], mode="replicate")
    weights = (kernel / kernel.sum()).expand(len(image), 1, *kernel.shape)
    return F.conv2d(padded, weights, groups=len(image))[0]


def _reach(image: Tensor, share: float) -> tuple[float, Tensor]:
    """Return a share of the shorter side in pixels, and whole places around 0 that reach as far."""
    pixels = share * min(image.shape[-2:])
    most = int(np.ceil(pixels))
    return pixels, torch.arange(-most, most + 1, device=image.device, dtype=image.dtype)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = (image * 255).round().to(torch.uint8).movedim(0, 2).cpu().numpy()
    picture = Image.fromarray(pixels.squeeze(2) if len(image) == 1 else pixels)
    picture.save(file := io.BytesIO(), "jpeg", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file))).reshape(pixels.shape)
    return decoded.movedim(2, 0).to(image) / 255


# Levels: of noise, the standard deviation (of a factor for speckle), photons where it is white, and
# the share of pixels; of blurs, the standard deviation, radius and length; the share of a side's
# pixels that are left; the quality of JPEG; factors and exponents; the radius that is seen, in
# halves of the shorter side.
_TABLE = """
gaussian_noise  noise   0.04  0.08  0.12  0.18  0.26  xray ct mri fundus dermoscopy
shot_noise      noise   100   60    30    15    8     xray ct dermoscopy
speckle_noise   noise   0.1   0.2   0.3   0.4   0.5   xray ct mri ultrasound fundus oct dermoscopy
impulse_noise   noise   0.01  0.03  0.06  0.1   0.17  xray ct dermoscopy
gaussian_blur   blur    0.012 0.018 0.025 0.035 0.05  xray ct mri
defocus_blur    blur    0.025 0.035 0.045 0.06  0.08  fundus oct dermoscopy microscopy
motion_blur     blur    0.06  0.09  0.12  0.15  0.18  mri ultrasound fundus oct dermoscopy microscopy
pixelate        digital 0.7   0.5   0.4   0.3   0.2   all
jpeg            digital 50    30    15    10    7     all
brightness_up   colour  1.2   1.4   1.6   1.8   2.0   xray ct mri ultrasound dermoscopy microscopy
brightness_down colour  0.8   0.65  0.5   0.4   0.3   xray ct mri ultrasound fundus dermoscopy microscopy
contrast_up     colour  1.2   1.4   1.6   1.9   2.2   xray ct mri dermoscopy microscopy
contrast_down   colour  0.8   0.6   0.45  0.3   0.2   all
gamma_up        colour  1.2   1.4   1.7   2.0   2.5   xray ct mri
gamma_down      colour  0.85  0.7   0.55  0.45  0.35  xray ct mri
saturation_up   colour  1.3   1.6   2     2.5   3     microscopy
saturation_down colour  0.75  0.5   0.35  0.2   0.0   microscopy
dark_corners    optics  1.15  1.05  0.95  0.85  0.75  dermoscopy
"""  # noqa: E501


class Corruption(NamedTuple):
    """One way in which an image is corrupted: its kind, a level per severity, whose it is."""

    kind: str
    levels: list[float]
    modalities: set[str]


CORRUPTIONS = {
    name: Corruption(kind, [float(word) for word in words[:5]], set(words[5:]))
    for name, kind, *words in map(str.split, _TABLE.strip().splitlines())
}


def corruptions_of(modality: Modality, channels: int) -> tuple[str, ...]:
    """Return the names of a modality's corruptions; of ``"auto"`` all but dark corners."""
    names = [name for name in CORRUPTIONS if name != "dark_corners"]
    if modality != "auto":
        names = [n for n, kind in CORRUPTIONS.items() if kind.modalities & {"all", modality}]
    return tuple(n for n in names if channels == 3 or not n.startswith("saturation"))


def corrupt(image: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Return an image ``(C, H, W)`` uint8, on any device, corrupted at a severity of 1 to 5."""
    generator = Generator(image.device).manual_seed(seed)
    corrupted = _apply(name, image / 255, CORRUPTIONS[name].levels[severity - 1], generator)
    return (corrupted * 255).round().clamp(0, 255).to(torch.uint8)


class _CorruptedRows(Rows):
    """The images of a split, each corrupted when it is read: always to the same."""

    def __init__(self, images: Images, name: str, severity: int) -> None:
        super().__init__([images], np.arange(len(images)))
        self.name, self.severity = name, severity

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        images = super().__getitem__(key)
        for image, row in zip(images, self.rows[key].tolist(), strict=True):
            seed = zlib.crc32(f"{self.name} {self.severity} {row}".encode())
            pixels = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)
            result = corrupt(pixels, self.name, self.severity, seed)
            image[:] = result.permute(1, 2, 0).reshape(image.shape).numpy()
        return images


def corrupt_split(split: Split, name: str, severity: int) -> Split:
    """Return a split whose images are corrupted as they are read, to the same pixels each time."""
    return replace(split, images=_CorruptedRows(split.images, name, severity))


def corrupt_randomly(names: Sequence[str]) -> Callable[[Batch], Batch]:
    """Return an augmentation that corrupts `AUGMENTED_SHARE` of the images, each in one way."""

    def augment(batch: Batch) -> Batch:
        count, image = len(batch.image), batch.image.clone()
        chosen = torch.rand(count) < AUGMENTED_SHARE
        limits = (0, len(names)), (1, 6), (0, 2**31)  # of corruption, severity and seed
        drawn = [torch.randint(low, high, (count,)).tolist() for low, high in limits]
        for row in torch.nonzero(chosen)[:, 0].tolist():
            number, severity, seed = (values[row] for values in drawn)
            image[row] = corrupt(image[row], names[number], severity, seed)
        return batch._replace(image=image.float() / 255)

    return augment
