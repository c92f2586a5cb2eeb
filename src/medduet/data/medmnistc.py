"""The corruptions of the package medmnistc, for the sets and the size that it was made for."""

from __future__ import annotations

import random
from importlib import import_module
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medduet.errors import ConfigError

SIDE = 224


def medmnistc_corruptions(flag: str | None, size: tuple[int, int]) -> dict[str, Any]:
    """Return the corruptions of MedMNIST-C for one MedMNIST set, by their names.

    Args:
        flag: of the set, such as ``"breastmnist"``; ``None`` if it is another one.
        size: height and width of the images.

    Raises:
        ConfigError: the package is not installed, does not know the set, or not this size.
    """
    try:
        registry = import_module("medmnistc.corruptions.registry")
    except ImportError as error:
        raise ConfigError(
            "--source medmnistc needs the package and ImageMagick: pip install --no-deps medmnistc "
            f"wand opencv-python-headless scikit-image ({' '.join(str(error).split())[:80]})"
        ) from error
    known: dict[str, dict[str, Any]] = registry.CORRUPTIONS_DS
    if flag not in known or size != (SIDE, SIDE):
        raise ConfigError(
            f"--source medmnistc knows {', '.join(known)} at {SIDE} x {SIDE} pixels: give --data "
            f"{flag if flag in known else 'breastmnist'} --size {SIDE}, or leave --source out"
        )
    return known[flag]


def spoilt(one: Any, image: NDArray[np.uint8], severity: int, seed: int) -> NDArray[np.uint8]:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` as a corruption of medmnistc leaves it.

    The package draws from global generators, which are given back as they were, and calls what
    numpy 2.3 has taken away.
    """
    drawn, other = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    one.rng = np.random.default_rng(seed)
    try:
        with patch.object(np, "fromstring", np.frombuffer):
            found = one.apply(Image.fromarray(image).convert("RGB"), severity - 1)
    finally:
        np.random.set_state(drawn)  # noqa: NPY002
        random.setstate(other)
    picture = Image.fromarray(found)
    return np.asarray(picture.convert("L") if image.ndim == 2 else picture)
