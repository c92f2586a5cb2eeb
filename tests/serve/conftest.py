"""What the tests of the service share."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import picture_of
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import OODDetector, statistics

EVIL = "<img src=x onerror=alert(1)>"


def smooth(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (8, 12), dtype=np.uint8))
    return np.asarray(small.resize((75, 50), Image.Resampling.BICUBIC))


def seen(first: int, last: int) -> np.ndarray:
    """Return the statistics of some of these images, as a network takes them."""
    options = ReadOptions((32, 32))
    fitted = [picture_of(smooth(k), options).fitted for k in range(first, last)]
    return statistics(np.stack(fitted)[:, None])


@pytest.fixture(scope="session")
def own(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose answers differ from image to image; one class is named by a stranger."""
    share = np.random.default_rng(0).dirichlet(np.ones(3), 200)
    label = np.random.default_rng(1).integers(0, 3, 200)
    return make_bundle(
        tmp_path_factory.mktemp("served") / "busi",
        layout=(3, 0),
        class_names=["benign", "malignant", EVIL],
        mask_names=["background", "lesion", EVIL],
        calibration=Calibration.fit(label, share).model_dump(mode="json"),
        ood=OODDetector.fit(seen(0, 60), seen(60, 120), channels=1).model_dump(mode="json"),
    )


@pytest.fixture(scope="session")
def picture() -> Callable[[int], np.ndarray]:
    """Smooth random images (50, 75), one for each number."""
    return smooth


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Write an array as the bytes of a file."""

    def encode(pixels: np.ndarray, kind: str = "png", **options: Any) -> bytes:
        Image.fromarray(pixels).save(file := io.BytesIO(), kind, **options)
        return file.getvalue()

    return encode
