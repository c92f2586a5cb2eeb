"""Augmentation of whole batches, image and mask together, as far as the kind of image allows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medduet.config import Augment, Modality
from medduet.data.corruptions import corrupt_randomly, corruptions_of
from medduet.data.imageset import ImageSet
from medduet.data.modality import SIDE, allowed, known_modality
from medduet.errors import ConfigError
from medduet.types import Batch

Augmentation = Callable[[Batch], Batch]


def build_augmentation(
    name: Augment, data: ImageSet, modality: Modality = "auto"
) -> Augmentation | None:
    """Return the augmentation called `name` for batches of `data`, or ``None`` for ``"none"``.

    It takes a `Batch` with uint8 images on any device and gives one with float32 images in [0, 1]
    there; masks move with their images (nearest pixel), and what comes in from outside is zero in
    both. Randomness comes from torch's global generator on the CPU. What each name does stands in
    `medduet.data.augmentations` and `medduet.data.corruptions`; see `allowed` for what is left out.

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
        sided = next(each for each in names if SIDE.search(each))
        raise ConfigError(
            f"--train.augment flip mirrors images, but {data.name} has a class '{sided}': "
            "give light, which leaves the mirror out here"
        )
    if name == "none":
        return None
    if name == "corrupt":
        kind = known_modality(data.info, modality)
        return corrupt_randomly(corruptions_of(kind, data.in_channels))
    from medduet.data.augmentations import changes_of_look, moves, sequence

    move = sequence(moves(name, data.size, permitted))
    looks = changes_of_look(name, data.size, permitted)
    look = sequence(looks) if looks else None

    def augment(batch: Batch) -> Batch:
        image = batch.image.float() / 255
        # Looks come first: a brighter image must not brighten what comes in from outside.
        if look is not None:
            image = look(image, data_keys=["input"]).clamp(0, 1)
        if batch.mask is None:
            return batch._replace(image=move(image, data_keys=["input"]).clamp(0, 1))
        image, mask = move(image, batch.mask.unsqueeze(1).to(image.dtype))
        mask = mask.squeeze(1).round().to(torch.int64)
        return batch._replace(image=image.clamp(0, 1), mask=mask)

    return augment
