"""Masks that are attached: the right ones, to what stays as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from medduet import DataConfig, DataError, ImageSet, open_images
from medduet.data.attach import attach, attach_masks
from medduet.data.imageset import SPLITS
from medduet.data.phantom import phantom_images
from medduet.errors import ConfigError

COUNT = 160
Reduce = Callable[[np.ndarray], np.ndarray]


def by_pillow(images: np.ndarray, side: int, how: str = "bicubic") -> np.ndarray:
    pictures = (Image.fromarray(image) for image in images)
    return np.stack(
        [np.asarray(p.resize((side, side), Image.Resampling[how.upper()])) for p in pictures]
    )


def written(path: Path, images: ImageSet, reduce: Reduce) -> Path:
    """A set without masks, of reduced copies."""
    arrays = {f"{name}_images": reduce(np.array(images.split(name).images)) for name in SPLITS}
    labels = {f"{name}_labels": images.split(name).labels[:, None] for name in SPLITS}
    np.savez_compressed(path, **arrays, **labels)
    return path


def shuffled(images: ImageSet, keep: int = COUNT) -> ImageSet:
    """The images of a set in other splits and another order, or only `keep` of them."""
    pool = images.pool()
    rows = np.array_split(np.random.default_rng(1).permutation(len(pool))[:keep], 3)
    return replace(images, **{name: pool.take(r) for name, r in zip(SPLITS, rows, strict=True)})


@pytest.fixture(scope="module")
def phantoms() -> ImageSet:
    return phantom_images(size=96, count=COUNT)


@pytest.fixture(scope="module")
def target(phantoms: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "small.npz"
    return written(path, phantoms, lambda images: by_pillow(images, 28))


@pytest.mark.parametrize("how", ["lanczos", "nearest", "bilinear"])
def test_each_image_gets_its_own_mask(how: str, phantoms: ImageSet, tmp_path: Path) -> None:
    side = 28 if how == "lanczos" else 64

    small = written(tmp_path / "small.npz", phantoms, lambda x: by_pillow(x, side, how))
    if how == "nearest":  # all lesions are ignored
        splits = [replace(x, masks=x.masks * np.uint8(255)) for x in map(phantoms.split, SPLITS)]
        phantoms = replace(phantoms, **dict(zip(SPLITS, splits, strict=True)))
    table = attach(small, [shuffled(phantoms)], tmp_path / "out.npz")
    assert (table["source"] == phantoms.pool().ids).all()
    assert (table["state"] == "matched").sum() >= 0.98 * COUNT
    out, known = open_images(str(tmp_path / "out.npz")), table["state"] == "matched"
    assert np.array_equal(out.pool().known_masks, known)
    expected = by_pillow(np.array(phantoms.pool().masks), side, "nearest")
    assert np.array_equal(out.pool().masks[:], expected * known.to_numpy()[:, None, None])
    assert out.mask_names == phantoms.mask_names


def test_the_arrays_of_the_target_are_kept(
    phantoms: ImageSet, target: Path, tmp_path: Path
) -> None:
    known = ~np.isin(np.arange(len(phantoms.train)), [3, 5])
    source = replace(phantoms, train=replace(phantoms.train, has_mask=known))
    table = attach(target, [source], tmp_path / "out.npz")
    assert np.flatnonzero(table["state"] == "no mask").tolist() == [3, 5]
    with np.load(target) as old, np.load(tmp_path / "out.npz") as new:
        for key in old:
            assert old[key].dtype == new[key].dtype
            assert np.array_equal(old[key], new[key])
        added = {f"{name}_{kind}" for name in SPLITS for kind in ("masks", "has_mask")}
        assert set(new) - set(old) == added | {"mask_names"}
        assert not new["train_has_mask"][[3, 5]].any()


def test_images_that_are_not_in_the_source_get_none(
    phantoms: ImageSet, target: Path, tmp_path: Path
) -> None:
    half = shuffled(phantoms, COUNT // 2)
    state = attach(target, [half], tmp_path / "out.npz")["state"]
    there = np.isin(phantoms.pool().ids, half.pool().ids)
    assert (state[there] == "matched").mean() >= 0.97
    assert (state[~there] == "unmatched").all()


def test_a_picture_with_two_masks_is_ambiguous(phantoms: ImageSet, tmp_path: Path) -> None:
    """Of copies with other masks none is taken; of copies with the same mask any."""
    train = phantoms.train
    images, masks = np.array(train.images), np.array(train.masks)
    sick, healthy = (
        np.flatnonzero(masks.any(axis=(1, 2)))[:2],
        np.flatnonzero(train.labels == 0)[:2],
    )
    images[sick[1]], images[healthy[1]] = images[sick[0]], images[healthy[0]]
    masks[sick[1]] = 1 - masks[sick[0]]
    source = replace(phantoms, train=replace(train, images=images, masks=masks))
    small = written(tmp_path / "small.npz", source, lambda x: by_pillow(x, 28))
    table = attach(small, [source], tmp_path / "out.npz")
    assert (table["state"][sick] == "ambiguous").all()
    assert {*table["rival"][sick], *table["source"][sick]} == {f"train/{x}" for x in sick}
    assert (table["state"][healthy] == "matched").all()
    known = open_images(str(tmp_path / "out.npz")).train.known_masks
    assert not known[sick].any()
    assert known[healthy].all()


def wide_folder(folder: Path, images: ImageSet) -> Path:
    """The pictures of a set, twice as wide, with noise on either side."""
    rng, pool = np.random.default_rng(0), images.pool()
    for number, (image, mask) in enumerate(zip(pool.images[:], pool.masks[:], strict=True)):
        wide = rng.integers(0, 256, (96, 192), np.uint8)
        wide[:, 48:144] = image
        (folder / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(wide).save(folder / "a" / f"p ({number}).png")
        drawn = np.pad(mask * 255, ((0, 0), (48, 48)))
        Image.fromarray(drawn).save(folder / "a" / f"p ({number})_mask.png")
    return folder


def test_centre_squares_of_wide_pictures(phantoms: ImageSet, target: Path, tmp_path: Path) -> None:
    data = DataConfig(name=str(wide_folder(tmp_path / "wide", phantoms)), cache=tmp_path)
    table = attach_masks(target, tmp_path / "out.npz", data=data)
    assert table.attrs["view"] == "crop"
    with pytest.raises(ConfigError, match=r"out\.npz exists"):
        attach_masks(target, tmp_path / "out.npz", data=data)
    names = table["source"].str.extract(r"\((\d+)\)")[0].astype(int)
    assert (names == np.arange(COUNT)).all()
    assert (table["state"] == "matched").mean() >= 0.98
    listed = table.assign(split=table["split"].str.upper(), image_id=names.map("p ({})".format))
    listed.loc[3, "image_id"] = "another"
    listed.to_csv(tmp_path / "index.csv", columns=["split", "index", "image_id"], index=False)
    index, out = tmp_path / "index.csv", tmp_path / "listed.npz"
    table = attach_masks(target, out, data=data, map=index)
    assert np.flatnonzero(table["state"] != "matched").tolist() == [3]
    assert table["state"][3] == "unmatched"
    index.write_text("split,index\n")
    with pytest.raises(DataError, match="the columns split, index, image_id"):
        attach_masks(target, tmp_path / "no.npz", data=data, map=index)


def test_a_set_that_is_no_folder(target: Path, tmp_path: Path) -> None:
    data = DataConfig(name="phantom", size=(96,), count=COUNT)
    table = attach_masks(target, tmp_path / "out.npz", data=data)
    assert (table["state"] == "matched").mean() >= 0.98


def test_a_name_of_two_pictures_is_no_name(
    phantoms: ImageSet, target: Path, tmp_path: Path
) -> None:
    ids = np.array(["a.png", *(f"{k}/a.png" for k in range(1, len(phantoms.train)))])
    source = replace(phantoms, train=replace(phantoms.train, ids=ids))
    (index := tmp_path / "index.csv").write_text("split,index,image_id\ntrain,0,a.png\n")
    table = attach(target, [source], tmp_path / "out.npz", listing=index)
    assert table["source"][0] == "a.png"
    index.write_text("split,index,image_id\ntrain,0,a\n")
    with pytest.raises(DataError, match=r"one picture called a, given a\.png or 1/a\.png"):
        attach(target, [source], tmp_path / "no.npz", listing=index)


@pytest.mark.parametrize("name", ["breastmnist_64", "breastmnist"])
def test_real_breastmnist(name: str, shared_data: Path, tmp_path: Path) -> None:
    """The official set, which shows centre squares, gets the masks of BUSI as a folder."""
    with ZipFile(shared_data / "busi_folder_128.zip") as archive:
        archive.extractall(tmp_path)
    data = DataConfig(name=str(tmp_path / "BUSI"), cache=tmp_path)
    table = attach_masks(shared_data / f"{name}.npz", tmp_path / "out.npz", data=data)
    right = open_images(str(shared_data / "breastmnist_64_with_busi_masks.npz"), cache=tmp_path)
    names = [name.partition("/")[2] for name in right.pool().ids]
    own = (table["source"].str.extract(r"/(.+)\.png")[0] == names).to_numpy()
    matched = (table["state"] == "matched").to_numpy()
    assert matched.sum() >= 770
    assert own[matched].all()
