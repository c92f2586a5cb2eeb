from pathlib import Path

import numpy as np
import pytest

from medduet.data.sources import open_images
from medduet.errors import ConfigError, DataError


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "environment.json").touch()
    with pytest.raises(DataError, match="expected images, given a run"):
        open_images(str(tmp_path))
    with pytest.raises(ConfigError, match="is for a folder or table of images"):
        open_images("set.npz", fit="stretch")
    with pytest.raises(ConfigError, match=r"for folders: give set\.csv a column mask"):
        open_images("set.csv", masks="masks")


def test_real_images_with_masks(shared_data: Path, cache: Path) -> None:
    path = shared_data / "busi_seg_64.npz"
    images = open_images(str(path), cache=cache)
    with np.load(path, allow_pickle=False) as official:
        for split in ("train", "val", "test"):
            given = images.split(split)
            assert np.array_equal(given.images, official[f"{split}_images"])
            assert np.array_equal(given.masks, official[f"{split}_masks"])
            assert np.array_equal(given.labels, official[f"{split}_labels"][:, 0])
    assert images.fingerprint == "d77e629fa2a49004cf062f87882f7e31a06f970d938b19d4fdffbca0d162e3bd"
