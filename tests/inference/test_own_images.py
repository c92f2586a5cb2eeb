"""Image files of one's own, from the folder to the finished run, beside the same set as an .npz."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet import ImageSet, open_images
from medduet.cli import main
from medduet.data.imageset import SPLITS


@pytest.fixture(scope="module")
def original() -> ImageSet:
    return open_images("phantom", size=32, count=60)


@pytest.fixture
def root(original: ImageSet, tmp_path: Path) -> Path:
    """The set in the naming of BUSI; every other mask as the union of two."""
    pool = original.pool()
    for number, (pixels, mask) in enumerate(zip(pool.images[:], pool.masks[:], strict=True)):
        kind = original.class_names[pool.labels[number]]
        stem = tmp_path / "own" / pool.ids[number].split("/")[0] / kind / f"{kind} ({number + 1})"
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(f"{stem}.png")
        white = (mask > 0).astype(np.uint8) * 255
        upper = (white * (np.arange(len(white))[:, None] < len(white) // 2)).astype(np.uint8)
        parts = {"": white} if number % 2 else {"": upper, "_1": white - upper}
        for end, part in parts.items():
            Image.fromarray(part).save(f"{stem}_mask{end}.png")
    return tmp_path / "own"


def test_files_give_the_batches_of_the_npz(original: ImageSet, root: Path, tmp_path: Path) -> None:
    images = open_images(str(root), split="given")
    assert (images.size, images.in_channels) == (original.size, 1)
    for name in SPLITS:
        ours, theirs = images.split(name), original.split(name)
        # Files are ordered by name, classes too; the numbers in the names tell the old order.
        number = [int(text.rpartition("(")[2].partition(")")[0]) for text in ours.ids.tolist()]
        one, two = ours.batch(np.argsort(number)), theirs.batch(np.arange(len(theirs)))
        assert one.image.equal(two.image)
        assert one.mask.equal((two.mask > 0).long())
        assert one.has_mask.all()
        names = [images.class_names[label] for label in one.label]
        assert names == [original.class_names[label] for label in two.label]
    # And the command line trains on it.
    words = f"train segment --data {root} --model.width 2 --epochs 1"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    table = (tmp_path / "run" / "predictions" / "test.csv").read_text().splitlines()
    assert len(table) == len(original.test) + 1
    assert table[1].split(",")[1].endswith(".png")
    assert len((tmp_path / "run" / "split.csv").read_text().splitlines()) == 1 + len(images.pool())
