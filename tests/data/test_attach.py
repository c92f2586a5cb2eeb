"""Masks that are attached: the right ones, to what stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from medduet import ImageSet, open_images
from medduet.cli import main
from medduet.data.attach import Attached, attach_masks
from medduet.data.imageset import SPLITS, Split
from medduet.data.phantom import phantom_images
from medduet.errors import ConfigError, DataError, MissingFileError

COUNT = 160


def _reduced(images: np.ndarray, side: int, how: str) -> np.ndarray:
    if how == "torch":
        tensor = torch.tensor(images)
        tensor = tensor[:, None] if images.ndim == 3 else tensor.movedim(-1, 1)
        small = interpolate(tensor.float(), (side, side), mode="bilinear", antialias=True)
        small = small.round().to(torch.uint8)
        return (small[:, 0] if images.ndim == 3 else small.movedim(1, -1)).numpy()
    filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    filters["nearest"] = Image.Resampling.NEAREST
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((side,) * 2, filters[how])) for x in images]
    )


def _write(path: Path, images: ImageSet, change: dict[str, np.ndarray]) -> Path:
    arrays = {f"{name}_images": change[name] for name in SPLITS}
    labels = {
        f"{name}_labels": images.split(name).labels[:, None].astype(np.uint8) for name in SPLITS
    }
    np.savez_compressed(path, **arrays, **labels)
    return path


def _target(path: Path, images: ImageSet, side: int, how: str = "bicubic") -> Path:
    changed = {name: _reduced(images.split(name).images[:], side, how) for name in SPLITS}
    return _write(path, images, changed)


def _shuffled(images: ImageSet, keep: int | None = None) -> ImageSet:
    """The images of a set in other splits and another order, or only `keep` of them."""
    pool = images.pool()
    rows = np.random.default_rng(1).permutation(len(pool))[:keep]
    thirds = np.array_split(rows, 3)
    return replace(
        images, **{name: pool.take(part) for name, part in zip(SPLITS, thirds, strict=True)}
    )


def _cropped(images: ImageSet) -> ImageSet:
    """The middle band of a set: pictures that are wider than high."""

    def cut(split: Split) -> Split:
        return replace(split, images=split.images[:, 12:84], masks=split.masks[:, 12:84])

    return replace(images, **{name: cut(images.split(name)) for name in SPLITS})


def _right(attached: Attached, images: ImageSet) -> np.ndarray:
    """Whether each image was given its own picture."""
    return attached.table["source"].to_numpy() == images.pool().ids


def _states(attached: Attached) -> np.ndarray:
    return attached.table["state"].to_numpy()


def _matched(attached: Attached) -> int:
    return int(attached.counts().loc["all", "matched"])


@pytest.fixture(scope="module")
def phantoms() -> ImageSet:
    return phantom_images(size=96, count=COUNT)


@pytest.mark.parametrize(
    ("how", "side"), [("bicubic", 28), ("torch", 64), ("lanczos", 28), ("nearest", 64)]
)
def test_each_image_gets_its_own_mask(
    how: str, side: int, phantoms: ImageSet, tmp_path: Path
) -> None:
    target = _target(tmp_path / "small.npz", phantoms, side, how)
    attached = attach_masks(target, _shuffled(phantoms), tmp_path / "out.npz")
    assert _right(attached, phantoms).all()
    assert _matched(attached) >= 0.98 * COUNT
    written = open_images(str(tmp_path / "out.npz"))
    for name in SPLITS:
        split = written.split(name)
        known = _states(attached)[attached.table["split"] == name] == "matched"
        assert np.array_equal(split.known_masks, known)
        masks = np.asarray(phantoms.split(name).masks)
        expected = _reduced(masks, side, "nearest")
        assert np.array_equal(split.masks[known], expected[known])
        assert not split.masks[~known].any()
    assert written.mask_names == phantoms.mask_names


def test_the_arrays_of_the_target_are_kept(phantoms: ImageSet, tmp_path: Path) -> None:
    known = np.ones(len(phantoms.train), bool)
    known[[3, 5]] = False
    source = replace(phantoms, train=replace(phantoms.train, has_mask=known))
    target = _target(tmp_path / "small.npz", phantoms, 28)
    attached = attach_masks(target, source, tmp_path / "out.npz")
    assert np.flatnonzero(_states(attached) == "no mask").tolist() == [3, 5]
    assert not open_images(str(tmp_path / "out.npz")).train.known_masks[[3, 5]].any()
    with np.load(target) as old, np.load(tmp_path / "out.npz") as new:
        for key in old:
            assert old[key].dtype == new[key].dtype
            assert np.array_equal(old[key], new[key])
        added = {f"{name}_{kind}" for name in SPLITS for kind in ("masks", "has_mask")}
        assert set(new) - set(old) == added | {"mask_names"}
        assert new["train_masks"].shape == new["train_images"].shape
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "split,index,state,source,score,margin,rival"
    assert rows[1].startswith("train,0,matched,train/0,0.99")
    assert len(rows) == 1 + COUNT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.npz", "small.npz"]


@pytest.mark.parametrize("window", ["whole", "square"])
def test_the_window_is_estimated(window: str, phantoms: ImageSet, tmp_path: Path) -> None:
    source = _cropped(phantoms)
    shown = slice(None) if window == "whole" else slice(12, 84)
    changed = {
        name: _reduced(source.split(name).images[:, :, shown], 32, "torch") for name in SPLITS
    }
    target = _write(tmp_path / "small.npz", source, changed)
    attached = attach_masks(target, source, tmp_path / "out.npz")
    assert (attached.view.window, attached.view.filter) == (window, "bilinear")
    assert _right(attached, source).all()
    assert _matched(attached) >= 0.98 * COUNT
    masks = open_images(str(tmp_path / "out.npz")).train.masks[:]
    expected = _reduced(source.train.masks[:, :, shown], 32, "nearest")
    assert (masks == expected).mean() > 0.99


def test_colour_and_grey(tmp_path: Path) -> None:
    images = phantom_images(size=64, count=COUNT, channels=3)
    grey = {
        name: np.stack(
            [
                np.asarray(Image.fromarray(image).convert("L").resize((28, 28)))
                for image in images.split(name).images
            ]
        )
        for name in SPLITS
    }
    for number, target in enumerate(
        (_write(tmp_path / "grey.npz", images, grey), _target(tmp_path / "rgb.npz", images, 28))
    ):
        attached = attach_masks(target, _shuffled(images), tmp_path / f"out{number}.npz")
        assert _right(attached, images).all()
        assert _matched(attached) >= 0.98 * COUNT


def test_images_that_are_not_in_the_source_get_none(phantoms: ImageSet, tmp_path: Path) -> None:
    half = _shuffled(phantoms, COUNT // 2)
    target = _target(tmp_path / "small.npz", phantoms, 28)
    attached = attach_masks(target, half, tmp_path / "out.npz")
    there = np.isin(phantoms.pool().ids, half.pool().ids)
    assert (_states(attached)[there] == "matched").mean() >= 0.97
    assert (_states(attached)[~there] == "unmatched").all()
    other = _target(tmp_path / "other.npz", phantom_images(size=96, count=COUNT, seed=7), 28)
    found = attach_masks(other, phantoms, tmp_path / "none.npz")
    assert found.counts().loc["all", "unmatched"] == COUNT
    assert not open_images(str(tmp_path / "none.npz")).train.known_masks.any()


def test_a_picture_with_two_masks_is_ambiguous(phantoms: ImageSet, tmp_path: Path) -> None:
    """Of copies with other masks none is taken; of copies with the same mask any."""
    train = phantoms.train
    images, masks = np.array(train.images), np.array(train.masks)
    sick = np.flatnonzero(masks.any(axis=(1, 2)))[:2]
    images[sick[1]] = images[sick[0]]
    masks[sick[1]] = 1 - masks[sick[0]]
    healthy = np.flatnonzero(train.labels == 0)[:2]
    images[healthy[1]] = images[healthy[0]]
    source = replace(phantoms, train=replace(train, images=images, masks=masks))
    target = _target(tmp_path / "small.npz", source, 28)
    attached = attach_masks(target, source, tmp_path / "out.npz")
    assert (_states(attached)[sick] == "ambiguous").all()
    rivals, sources = attached.table["rival"][sick], attached.table["source"][sick]
    assert {*rivals, *sources} == {f"train/{x}" for x in sick}
    assert (_states(attached)[healthy] == "matched").all()
    written = open_images(str(tmp_path / "out.npz")).train
    assert not written.known_masks[sick].any()
    assert written.known_masks[healthy].all()


def test_mistakes(phantoms: ImageSet, tmp_path: Path) -> None:
    target, out = _target(tmp_path / "small.npz", phantoms, 28), tmp_path / "out.npz"
    bare = open_images(str(target))
    with pytest.raises(DataError, match="expected a source with masks, given small"):
        attach_masks(target, bare, out)
    with pytest.raises(MissingFileError, match=r"no file .*absent\.npz"):
        attach_masks(tmp_path / "absent.npz", phantoms, out)
    with pytest.raises(ConfigError, match=r"path of an \.npz to write"):
        attach_masks(target, phantoms, tmp_path / "out")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.npz: expected a whole \.npz"):
        attach_masks(tmp_path / "text.npz", phantoms, out)
    assert not out.exists()
    attach_masks(target, phantoms, out)
    with pytest.raises(ConfigError, match=r"out\.npz exists"):
        attach_masks(target, phantoms, out)
    with pytest.raises(DataError, match=r"expected a set without masks, but .*out\.npz has masks"):
        attach_masks(out, phantoms, tmp_path / "again.npz")
    assert not (tmp_path / "again.npz").exists()


def test_the_command(
    phantoms: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, out = _target(tmp_path / "small.npz", phantoms, 28), tmp_path / "out.npz"
    kinds = ("images", "labels", "masks")
    arrays = {f"{n}_{kind}": getattr(phantoms.split(n), kind) for n in SPLITS for kind in kinds}
    np.savez(tmp_path / "source.npz", **arrays)
    words = ["attach-masks", str(target), "--data", str(tmp_path / "source.npz"), "--out", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "the whole picture, resized by the bicubic filter" in shown
    assert f"written: {out}" in shown
    assert open_images(str(out)).train.known_masks.mean() > 0.95


def test_real_breastmnist(shared_data: Path, tmp_path: Path) -> None:
    """The official set gets the masks of BUSI; most images were reduced alike, bit for bit."""
    source = open_images(str(shared_data / "breastmnist_224_rebuilt.npz"))
    attach_masks(shared_data / "breastmnist_64.npz", source, tmp_path / "out.npz")
    written = open_images(str(tmp_path / "out.npz")).pool()
    right = open_images(str(shared_data / "breastmnist_64_with_busi_masks.npz")).pool()
    matched = written.known_masks
    assert matched.sum() >= 620  # others are from another copy of BUSI
    equal = (written.masks[:] == right.masks[:]).mean(axis=(1, 2))
    assert equal[matched].min() > 0.99
