"""The first lines of a training: what was understood of the data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet import open_images
from medduet.data.summary import data_summary


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """18 images in two classes, of which one is broken and one has no mask, and a tiny lesion."""
    root = tmp_path / "scans"
    for number in range(18):
        folder = root / ("small", "big")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((100, 100), 60).save(folder / f"{number}.png")
        mask = np.zeros((100, 100), np.uint8)
        side = 40 if number % 2 else 2
        mask[53 : 53 + side, 53 : 53 + side] = 255
        if number:
            Image.fromarray(mask).save(folder / f"{number}_mask.png")
    (root / "big" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return root


def test_it_counts_what_there_is(scans: Path, tmp_path: Path) -> None:
    images = open_images(str(scans), cache=tmp_path / "cache", size=20, skip_broken=True)
    lines = data_summary(images)
    rows = {line.split("  ")[0]: line for line in (each.strip() for each in lines)}
    assert lines[0] == "scans: 17 images of 20 x 20, grey (files: 17 PNG)"

    def total(name: str) -> int:
        return sum(map(int, rows[name].removeprefix(name).split()[:3]))

    assert [total(name) for name in ("images", "big", "small", "masks", "mask unknown")] == [
        *(17, 8, 9, 16, 1)
    ]
    filled = images.pool().masks[:].any(axis=(1, 2)).sum()
    assert total("lesion") == filled
    share = images.pool().masks[:][images.pool().known_masks].mean()
    assert f"{share:.2%} of pixels" in rows["lesion"]
    assert filled == 8  # a square of 2 pixels falls between those that are looked up
    assert "note: 8 masks lose all pixels of a class at this size: --size 50 keeps them" in lines
    assert "left out: 1 of 18 files, see above" in lines
    assert "mask values: 0 background, 255 lesion" in lines
    assert "split: made, seed 0; groups and near-duplicates stay together" in lines
    images = open_images(str(scans), cache=tmp_path / "cache", size=50, skip_broken=True)
    assert images.pool().masks[:].any(axis=(1, 2)).sum() == 16


def test_turned_images_are_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    for number in range(9):
        exif[274] = (1, 3, 6)[number % 3]
        Image.effect_noise((40, 40), 50).save(tmp_path / f"{number}.jpg", exif=exif)
    images = open_images(str(tmp_path), cache=tmp_path / "cache")
    assert [note for note in images.info["notes"] if note.startswith("6 of 9 files are turned")]
