"""What an image is, and what augmentation may therefore do to it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from medduet.types import Modality

MEDMNIST: dict[str, Modality] = {  # the first of a modality stands for it in `corruptions_of`
    **dict.fromkeys(("pathmnist", "bloodmnist", "tissuemnist"), "microscopy"),
    "breastmnist": "ultrasound",
    **dict.fromkeys(("chestmnist", "pneumoniamnist"), "xray"),
    "dermamnist": "dermoscopy",
    "octmnist": "oct",
    **dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), "ct"),
    "retinamnist": "fundus",
}
MEDMNIST_3D: dict[str, Modality] = {"synapsemnist3d": "microscopy", "vesselmnist3d": "mri"}
MEDMNIST_3D |= {f"{organ}mnist3d": "ct" for organ in ("adrenal", "fracture", "nodule", "organ")}
# Gravity, the probe or the anatomy fix what is up; only what lies under a microscope or on the skin
# has no upper side. Hue varies with stain, skin and lamp, and means nothing elsewhere.
_WITHOUT_UPPER_SIDE = ("dermoscopy", "microscopy")
_HUE = {"dermoscopy": 0.02, "fundus": 0.02, "microscopy": 0.04}
# As a word: kidney-left, LEFT, leftLung, LungLeft, but neither cleft nor upright.
SIDE = re.compile(r"((?<![A-Za-z])(left|right|LEFT|RIGHT)|Left|Right)(?![a-z])")


class Allowed(NamedTuple):
    """Whether left and right may be exchanged, images be turned, and how much hue may change."""

    mirror: bool = True
    turn: bool = False
    hue: float = 0.0


def allowed(modality: Modality, names: Iterable[str], channels: int = 3) -> Allowed:
    """Return what may be done to images without making their truth wrong.

    Where the name of a class or mask class says left or right, that is neither mirror nor turn.
    """
    free = not any(SIDE.search(name) for name in names)
    hue = _HUE.get(modality, 0.0) if channels == 3 else 0.0
    return Allowed(free, free and modality in _WITHOUT_UPPER_SIDE, hue)


def known_modality(info: Mapping[str, Any], modality: Modality) -> Modality:
    """Return the modality; for ``"auto"`` what `info` says: of files, or of a MedMNIST set."""
    known = MEDMNIST | MEDMNIST_3D
    of_files: Modality = info.get("modality", "auto")
    return known.get(info.get("medmnist", ""), of_files) if modality == "auto" else modality
