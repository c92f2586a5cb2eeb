"""What each augmentation does, in kornia's transforms. Slow to import: only training needs it.

``flip`` mirrors. ``light`` also moves images a little and changes brightness and contrast.
``strong`` moves them further, bends and crops them, and changes gamma, sharpness, noise and, where
allowed, colour; it also blanks small rectangles. Those stay in the mask and in the loss: a shadow
or a calliper hides tissue just so, and a network is to conclude from what surrounds it; a mask with
a hole would say that hidden tissue is background.
"""

from collections.abc import Callable, Sequence
from typing import Any

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from medduet.data.modality import Allowed
from medduet.types import Augment


class Elastic(K.RandomElasticTransform):
    """Bends images by random shifts of a coarse grid, with smooth shifts between, as in the U-Net.

    kornia smoothes one random shift per pixel instead, which takes 0.8 s for 16 images of 224
    pixels and their masks on one core, ten times as long. Source: doi:10.1007/978-3-319-24574-4_28.
    """

    shift, points = 0.05, 5  # the largest shift, as a share of the side; grid points per side

    def generate_parameters(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the shifts of the grid points, ``(N, 2, points, points)``, in [-1, 1]."""
        return {"shifts": 2 * torch.rand(shape[0], 2, self.points, self.points) - 1}

    def apply_transform(
        self, image: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Any = None
    ) -> Tensor:
        """Return ``(N, C, H, W)`` images, or masks, with zeros where they come from outside."""
        knots = torch.eye(self.points, device=image.device)[None, None]
        # How much of each grid point is in each row and each column.
        rows, columns = (
            interpolate(knots, (side, self.points), mode="bicubic", align_corners=True)[0, 0]
            for side in image.shape[-2:]
        )
        # A side is 2 long in the units of grid_sample.
        smooth = 2 * self.shift * (rows @ params["shifts"].to(image.device) @ columns.T)
        upright = torch.eye(2, 3, device=image.device).expand(len(image), 2, 3)
        place = affine_grid(upright, list(image.shape), align_corners=False)
        place = place + smooth.movedim(1, -1)
        mode = flags["resample"].name.lower()
        return grid_sample(image, place, mode=mode, padding_mode="zeros", align_corners=False)


def sequence(transforms: Sequence[Any]) -> K.AugmentationSequential:
    """Return the `transforms` one after the other, for images and masks."""
    nearest = {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": False}}
    return K.AugmentationSequential(*transforms, data_keys=["input", "mask"], extra_args=nearest)


def move_volumes(name: Augment, allowed: Allowed) -> Callable[..., Any]:
    """Return what moves volumes, and masks alike, turned about all three axes.

    It takes what `sequence` takes, and stands for it: kornia's moves no masks of volumes.
    """
    flips = (K.RandomHorizontalFlip3D, K.RandomVerticalFlip3D, K.RandomDepthicalFlip3D)
    chosen = [flip(p=0.5) for flip in flips[: 3 if allowed.turn else int(allowed.mirror)]]
    if name != "flip":
        angle, scale = (15.0, 0.15) if name == "light" else (25.0, 0.25)
        chosen.append(K.RandomAffine3D(angle, (0.1,) * 3, scale=(1 - scale, 1 + scale), p=0.8))

    def move(image: Tensor, mask: Tensor | None = None, data_keys: Any = None) -> Any:
        for transform in chosen:
            image = transform(image)
            if mask is not None:
                nearest = {"params": transform._params, "resample": Resample.NEAREST}
                mask = transform(mask, **nearest)
        return image if mask is None else (image, mask)

    return move


def moves(name: Augment, size: tuple[int, ...], allowed: Allowed) -> list[Any]:
    """Return what moves image and mask, for images of ``size`` (height, width)."""
    chosen: list[Any] = [K.RandomHorizontalFlip(p=0.5)] if allowed.mirror else []
    if name == "flip":
        return chosen
    if allowed.turn:
        chosen.append(K.RandomVerticalFlip(p=0.5))
        if size[0] == size[1]:
            # So each of the eight ways to lay a square is as likely.
            chosen.append(K.RandomRotation90(times=(1, 1), align_corners=False, p=0.5))
    if name == "light":
        return [*chosen, K.RandomAffine(15.0, (0.1, 0.1), scale=(0.85, 1.15), p=0.8)]
    return [
        *chosen,
        K.RandomAffine(25.0, (0.1, 0.1), scale=(0.75, 1.25), shear=8.0, p=0.8),
        Elastic(p=0.5),
        # Without align_corners, which would move images by up to half a pixel against masks.
        K.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.85, 1.18), align_corners=False),
    ]


def changes_of_look(name: Augment, size: tuple[int, ...], allowed: Allowed) -> list[Any]:
    """Return what changes the values of an image and leaves all where it is.

    Of volumes it is what knows no neighbours: no blur, and no rectangles that are blanked.
    """
    if name == "flip":
        return []
    if name == "light":
        return [K.ColorJiggle(brightness=0.2, contrast=0.2, p=0.5)]
    saturation = 0.2 if allowed.hue else 0.0
    looks = [
        K.ColorJiggle(0.15, 0.25, saturation=saturation, hue=allowed.hue, p=0.8),
        K.RandomGamma((0.75, 1.35), p=0.4),
        K.RandomGaussianBlur((7, 7), (0.1, max(0.5, min(size) / 128)), p=0.3),
        K.RandomGaussianNoise(std=0.04, p=0.4),
        K.RandomErasing((0.01, 0.05), (0.4, 2.5), p=0.3),
    ]
    return looks if len(size) == 2 else looks[:2] + looks[3:4]
