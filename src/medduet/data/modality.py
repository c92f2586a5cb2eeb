"""What an image is, and what augmentation may therefore do to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from medduet.config import Modality


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
SIDE = re.compile(r"((?<![A-Za-z])(left|right|LEFT|RIGHT)|Left|Right)(?![a-z])")


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
    if any(SIDE.search(name) for name in names):
        result = result._replace(mirror=False, turn=False)
    return result


def known_modality(info: Mapping[str, Any], modality: Modality = "auto") -> Modality:
    """Return the modality, that of the MedMNIST set for ``"auto"``, of which `info` is known.

    Example:
        >>> known_modality({"medmnist": "octmnist"}), known_modality({})
        ('oct', 'auto')
    """
    return _MEDMNIST.get(info.get("medmnist", ""), "auto") if modality == "auto" else modality
