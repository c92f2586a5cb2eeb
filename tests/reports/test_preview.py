"""The preview: every class, the right masks, and the versions that training would see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medduet.reports.preview as module
from medduet import DataConfig, open_images
from medduet.reports.preview import preview

PHANTOM = DataConfig(name="phantom", size=16, count=60)


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels and headings of the grids that are drawn from now on."""
    drawn, image_grid = [], module.image_grid

    def note(panels: Any, headings: Any, *texts: str, **options: Any) -> Any:
        drawn.append((panels, headings))
        return image_grid(panels, headings, *texts, **options)

    monkeypatch.setattr(module, "image_grid", note)
    return drawn


def test_every_class_with_its_masks(tmp_path: Path, grids: list[Any]) -> None:
    path = preview(PHANTOM, tmp_path / "a.png", count=9, split="val")
    assert path.read_bytes()[1:4] == b"PNG"
    ((panel,), headings) = grids[0]
    assert headings == ["normal", "normal", "smooth", "smooth", "spiculated", "ring"]
    assert panel.masks.any(axis=(1, 2)).tolist() == [name != "normal" for name in headings]


def test_augmented_versions_stand_beside(tmp_path: Path, grids: list[Any]) -> None:
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        preview(PHANTOM, tmp_path / "a.png", count=4, augment="flip", seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    one, again, other = (np.stack([panel.images for panel in panels]) for panels, _ in grids)
    train = open_images(PHANTOM).train
    assert all((image == train.images).all(axis=(1, 2)).any() for image in one[0])
    flips = [(one[1:] == images).all(axis=(2, 3)) for images in (one[0], one[0, :, :, ::-1])]
    assert (flips[0] | flips[1]).all()
    assert len(one) == 4
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
