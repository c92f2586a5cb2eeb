"""Augmentation of whole batches, image and mask together, as far as the kind of image allows."""

from collections.abc import Callable
from typing import Any

import torch

from medduet.data.imageset import ImageSet
from medduet.data.modality import SIDE, allowed, known_modality
from medduet.errors import ConfigError
from medduet.types import Augment, Batch, Modality


def build_augmentation(
    name: Augment,
    data: ImageSet,
    modality: Modality = "auto",
    size: tuple[int, ...] | None = None,
) -> Callable[[Batch], Batch] | None:
    """Return the augmentation for batches of `data`, or ``None`` for ``"none"``.

    It takes uint8 images and gives float32 ones in [0, 1]; masks move along, by nearest pixel.
    Randomness comes from torch's global generator on the CPU. `size` is that of patches.
    """
    size = size or data.size
    names, modality = (*data.class_names, *data.mask_names), known_modality(data.info, modality)
    permitted = allowed(modality, names, data.in_channels)
    if name == "flip" and not permitted.mirror:
        sided = next(name for name in names if SIDE.search(name))
        raise ConfigError(
            f"--train.augment flip mirrors images, but {data.name} has a class '{sided}': "
            "use --train.augment light, which does not mirror them"
        )
    if name == "none":
        return None
    from medduet.data.augmentations import changes_of_look, move_volumes, moves, sequence

    move: Callable[..., Any] = move_volumes(name, permitted)
    if data.dims == 2:
        move = sequence(moves(name, size, permitted))
    looks = changes_of_look(name, size, permitted)
    look = sequence(looks) if looks else None

    def augment(batch: Batch) -> Batch:
        image = batch.image.float() / 255
        # Looks come first: a brighter image must not brighten what comes in from outside.
        if look is not None:
            # The slices of a volume are one image: these change each value by itself.
            flat = image.flatten(2, -2)
            image = look(flat, data_keys=["input"]).clamp(0, 1).reshape(image.shape)
        if batch.mask is None:
            return batch._replace(image=move(image, data_keys=["input"]).clamp(0, 1))
        image, mask = move(image, batch.mask.unsqueeze(1).to(image.dtype))
        mask = mask.squeeze(1).round().to(torch.int64)
        return batch._replace(image=image.clamp(0, 1), mask=mask)

    return augment
