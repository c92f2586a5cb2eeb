"""Augmentation of whole batches, image and mask together."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medduet.types import Batch

Augmentation = Callable[[Batch], Batch]


def build_augmentation(name: str) -> Augmentation | None:
    """Return the augmentation called `name`, or ``None`` for ``"none"``.

    It takes a `Batch` with uint8 images and gives one with float images in [0, 1]; masks move with
    their images (nearest neighbour). Randomness comes from torch's global generator, which the
    training loop seeds and saves. The transforms are kornia's: ``"flip"`` is horizontal,
    ``"standard"`` adds affine moves and changes of brightness and contrast.

    Example:
        >>> build_augmentation("none") is None
        True
    """
    if name == "none":
        return None
    import kornia.augmentation as K

    transforms = [K.RandomHorizontalFlip(p=0.5)]
    if name == "standard":
        transforms += [
            K.RandomAffine(degrees=15.0, translate=(0.1, 0.1), scale=(0.85, 1.15), p=0.8),
            K.ColorJiggle(brightness=0.2, contrast=0.2, p=0.5),
        ]
    with_mask = K.AugmentationSequential(*transforms, data_keys=["input", "mask"])
    without_mask = K.AugmentationSequential(*transforms, data_keys=["input"])

    def augment(batch: Batch) -> Batch:
        image = batch.image.float() / 255
        if batch.mask is None:
            return batch._replace(image=without_mask(image))
        image, mask = with_mask(image, batch.mask.unsqueeze(1).to(image.dtype))
        return batch._replace(image=image, mask=mask.squeeze(1).round().to(torch.int64))

    return augment
