"""The preview: every class, the right masks, and the versions that training would see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import medduet.reports.preview as module
from medduet import ConfigError, DataConfig, open_images
from medduet.reports.preview import preview


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from now on."""
    saved: list[Figure] = []
    save = module.save

    def note(figure: Figure, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(module, "save", note)
    return saved


def words(figure: Figure) -> list[str]:
    shown = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        shown += [axes.get_title(loc="left"), axes.get_xlabel()]
    return shown + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def pictures(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


PHANTOM = DataConfig(name="phantom", size=16, count=60)


def write(path: Path, **changes: Any) -> DataConfig:
    images = open_images("phantom", size=16, count=60)
    arrays: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        split = images.split(name)
        arrays[f"{name}_images"] = split.images
        for kind, change in changes.items():
            if (found := change(split)) is not None:
                arrays[f"{name}_{kind}"] = found
    np.savez_compressed(path, **arrays)
    return DataConfig(name=str(path))


def test_every_class_is_there_with_its_masks(tmp_path: Path, figures: list[Figure]) -> None:
    path = preview(PHANTOM, tmp_path / "a.png", count=9, split="val")
    assert path.read_bytes()[1:4] == b"PNG"
    shown = words(figures[0])
    assert shown[0] == "phantom: 6 of 6 images of val"
    assert {"normal", "smooth", "spiculated", "ring", "lesion"} <= set(shown)
    assert shown.count("empty mask") == shown.count("normal")
    outlined = sum(bool(axes.collections) for axes in figures[0].axes)
    assert outlined == 6 - shown.count("normal")


def test_each_image_stands_beside_its_versions(tmp_path: Path, figures: list[Figure]) -> None:
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        preview(PHANTOM, tmp_path / "a.png", count=4, augment="flip", seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (pictures(figure) for figure in figures)
    assert len(first) == 4 * 4
    train = open_images("phantom", size=16, count=60).train
    for original, *versions in zip(*[iter(first)] * 4, strict=True):
        assert (original == train.images).all(axis=(1, 2)).any()
        for version in versions:
            assert any(np.array_equal(version, each) for each in (original, original[:, ::-1]))
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))
    assert "--train.augment flip" in words(figures[0])


def test_unknown_labels_and_masks(tmp_path: Path, figures: list[Figure]) -> None:
    config = write(
        tmp_path / "half.npz",
        labels=lambda split: np.where(np.arange(len(split)) % 2, split.labels, -1),
        masks=lambda split: split.masks,
        has_mask=lambda split: np.zeros(len(split), dtype=bool),
    )
    preview(config, tmp_path / "a.png", count=10, augment="light")
    shown = words(figures[0])
    assert shown.count("unknown") == 2
    assert shown.count("original: unknown") == 10
    assert not any(axes.collections for axes in figures[0].axes)


def test_sets_without_classes_or_masks(tmp_path: Path, figures: list[Figure]) -> None:
    masks = write(tmp_path / "masks.npz", masks=lambda split: split.masks)
    preview(masks, tmp_path / "a.png")
    assert len(figures[0].axes) == 16
    labels = write(
        tmp_path / "several.npz",
        labels=lambda split: np.stack([split.labels == 1, split.labels > 1], axis=1).astype(int),
    )
    preview(labels, tmp_path / "b.png", augment="strong", count=64)
    assert len(figures[1].axes) == 42 * 4
    assert "none" in words(figures[1])


def test_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert preview(PHANTOM, count=1) == Path("phantom-preview.png")
    assert Path("phantom-preview.png").is_file()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    for count in (0, 65):
        with pytest.raises(ConfigError, match=f"--count must be 1 to 64 images, given {count}"):
            preview(PHANTOM, count=count)
    with pytest.raises(ConfigError, match=r"--out takes the path of a \.png file"):
        preview(PHANTOM, tmp_path / "a.jpg")
