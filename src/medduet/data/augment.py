"""Augmentation of whole batches, image and mask together, as far as the kind of image allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from medduet.config import Augment, Modality
from medduet.data.corruptions import corrupt_randomly, corruptions_of
from medduet.data.imageset import ImageSet
from medduet.errors import ConfigError
from medduet.types import Batch

Augmentation = Callable[[Batch], Batch]


class Allowed(NamedTuple):
    """What may be done to an image without making its truth wrong.

    Attributes:
        mirror: whether left and right may be exchanged.
        turn: whether it may be turned upside down and, if square, by 90 degrees.
        hue: the largest change of hue, as a share of the circle; 0 leaves colours as they are.
    """

    mirror: bool = True
    turn: bool = False
    hue: float = 0.0


# Gravity, the probe or the anatomy fix what is up; only what lies under a microscope or on the skin
# has no upper side. Hue varies with stain, skin and lamp, and means nothing elsewhere.
_ALLOWED: dict[Modality, Allowed] = {
    "dermoscopy": Allowed(turn=True, hue=0.02),
    "fundus": Allowed(hue=0.02),
    "microscopy": Allowed(turn=True, hue=0.04),
}
_MEDMNIST: dict[str, Modality] = {
    "bloodmnist": "microscopy",
    "breastmnist": "ultrasound",
    "chestmnist": "xray",
    "dermamnist": "dermoscopy",
    "octmnist": "oct",
    "organamnist": "ct",
    "organcmnist": "ct",
    "organsmnist": "ct",
    "pathmnist": "microscopy",
    "pneumoniamnist": "xray",
    "retinamnist": "fundus",
    "tissuemnist": "microscopy",
}
# As a word: kidney-left, LEFT, leftLung, LungLeft, but neither cleft nor upright.
_SIDE = re.compile(r"((?<![A-Za-z])(left|right|LEFT|RIGHT)|Left|Right)(?![a-z])")


def allowed(
    info: Mapping[str, Any],
    names: Iterable[str],
    modality: Modality = "auto",
    *,
    channels: int = 3,
) -> Allowed:
    """Return what may be done to images without making their truth wrong.

    ``"auto"`` knows the modality of the MedMNIST sets; other sets are mirrored, not turned, and
    keep their colours. Where the name of a class says left or right, as in OrganMNIST, images are
    neither mirrored nor turned.

    Args:
        info: that of the set, as a bundle keeps it.
        names: of classes and mask classes.
        modality: what the images show.
        channels: 1 or 3; grey images have no hue.

    Example:
        >>> allowed({"medmnist": "bloodmnist"}, ["platelet"]).turn
        True
        >>> allowed({"medmnist": "organamnist"}, ["kidney-left"]).mirror
        False
    """
    result = _ALLOWED.get(known_modality(info, modality), Allowed())
    if channels == 1:
        result = result._replace(hue=0.0)
    if any(_SIDE.search(name) for name in names):
        result = result._replace(mirror=False, turn=False)
    return result


def known_modality(info: Mapping[str, Any], modality: Modality = "auto") -> Modality:
    """Return the modality, that of the MedMNIST set for ``"auto"``, of which `info` is known.

    Example:
        >>> known_modality({"medmnist": "octmnist"}), known_modality({})
        ('oct', 'auto')
    """
    return _MEDMNIST.get(info.get("medmnist", ""), "auto") if modality == "auto" else modality


def build_augmentation(
    name: Augment, data: ImageSet, modality: Modality = "auto"
) -> Augmentation | None:
    """Return the augmentation called `name` for batches of `data`, or ``None`` for ``"none"``.

    It takes a `Batch` with uint8 images on any device and gives one with float32 images in [0, 1]
    there; masks move with their images (nearest pixel), and what comes in from outside is zero in
    both. Randomness comes from torch's global generator on the CPU, which the training loop seeds
    and saves. What each name does stands in `medduet.data.augmentations`, of ``"corrupt"``, which
    moves nothing, in `medduet.data.corruptions`; see `allowed` for what is left out.

    Raises:
        ConfigError: `name` is ``"flip"`` and the images must not be mirrored.

    Example:
        >>> import numpy as np
        >>> from medduet import open_images
        >>> images = open_images("phantom", size=32, count=20)
        >>> augment = build_augmentation("strong", images)
        >>> batch = augment(images.train.batch(np.arange(4)))
        >>> batch.image.shape, batch.image.dtype, batch.mask.shape
        (torch.Size([4, 1, 32, 32]), torch.float32, torch.Size([4, 32, 32]))
        >>> build_augmentation("none", images) is None
        True
    """
    names = (*data.class_names, *data.mask_names)
    permitted = allowed(data.info, names, modality, channels=data.in_channels)
    if name == "flip" and not permitted.mirror:
        sided = next(each for each in names if _SIDE.search(each))
        raise ConfigError(
            f"--train.augment flip mirrors images, but {data.name} has a class '{sided}': "
            "give light, which leaves the mirror out here"
        )
    if name == "none":
        return None
    if name == "corrupt":
        return corrupt_randomly(
            corruptions_of(known_modality(data.info, modality), data.in_channels)
        )
    from medduet.data.augmentations import changes_of_look, moves, sequence

    moved = moves(name, data.size, permitted)
    with_mask, without_mask = (sequence(moved, keys) for keys in (("input", "mask"), ("input",)))
    looks = changes_of_look(name, data.size, permitted)
    look = sequence(looks, ("input",)) if looks else None

    def augment(batch: Batch) -> Batch:
        image = batch.image.float() / 255
        # Looks come first: a brighter image must not brighten what comes in from outside.
        if look is not None:
            image = look(image).clamp(0, 1)
        if batch.mask is None:
            return batch._replace(image=without_mask(image).clamp(0, 1))
        image, mask = with_mask(image, batch.mask.unsqueeze(1).to(image.dtype))
        mask = mask.squeeze(1).round().to(torch.int64)
        return batch._replace(image=image.clamp(0, 1), mask=mask)

    return augment
