"""Small networks whose predictions differ from image to image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import medduet
from medduet import DenseLayout
from medduet.runs.bundle import save_bundle


def patterns(n: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return coarse patterns ``(N, 1, H, W)``, each with another share of bright pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.random((n, 1, 13, 13)) ** (3 * rng.random((n, 1, 1, 1)) + 0.2)
    pixels = coarse.repeat(8, axis=2).repeat(8, axis=3)[..., :height, :width]
    return (255 * pixels).astype(np.uint8)


def write_bundle(
    folder: Path,
    name: str = "vovunet_var",
    *,
    classes: int = 3,
    layout: tuple[int, int] = (2, 0),
    multi_label: bool = False,
    size: tuple[int, int] = (32, 32),
    fit: str = "pad",
) -> Path:
    """Write a network that has learnt what is bright: which image, and which pixels."""
    torch.manual_seed(0)
    own = DenseLayout(*layout)
    options = {} if ":" in name else {"width": 4}
    network = medduet.create_model(
        name, in_channels=1, num_classes=classes, dense_channels=own.channels, **options
    )
    pixels = torch.from_numpy(patterns(32, *size))
    bright = (pixels > 127).float()
    label = ((classes - 0.01) * bright.mean(dim=(1, 2, 3))).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(30):
        class_logits, dense = network(pixels)
        loss = F.cross_entropy(class_logits, label) if classes else 0
        if dense is not None:
            loss = loss + F.binary_cross_entropy_with_logits(dense[:, :1], bright)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    config = {
        "class_names": [f"class {number}" for number in range(classes)],
        "mask_names": ["background", "lesion", "cyst", "vessel"][: own.mask_classes],
        "multi_label": multi_label,
        "layout": own._asdict(),
        "preprocessing": {"size": list(size), "channels": 1, "fit": fit, "window": None},
    }
    save_bundle(folder, network.eval(), config)
    return folder


@pytest.fixture(scope="session")
def images() -> Callable[[int, int, int], NDArray[np.uint8]]:
    return patterns


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    return write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes and a lesion; look, don't touch."""
    return write_bundle(tmp_path_factory.mktemp("network") / "bundle")
