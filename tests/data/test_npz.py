import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medduet import open_images
from medduet.data.npz import open_npz
from medduet.data.zarr_store import write_zarr
from medduet.errors import DataError

Arrays = dict[str, np.ndarray]
Save = Callable[..., Path]
SPLITS = ("train", "val", "test")


def test_unpacked_arrays_equal_the_file_and_are_mapped(
    arrays: Arrays, save: Save, cache: Path
) -> None:
    images = open_npz(save(arrays), cache=cache)
    for name in SPLITS:
        split = images.split(name)
        assert isinstance(split.images, np.memmap)
        assert isinstance(split.masks, np.memmap)
        assert not split.images.flags.writeable
        assert np.array_equal(split.images, arrays[f"{name}_images"])
        assert np.array_equal(split.masks, arrays[f"{name}_masks"])
        assert np.array_equal(split.labels, arrays[f"{name}_labels"][:, 0])
        assert split.labels.dtype == np.int64
        assert split.has_mask is None
    assert images.class_names == ("class 0", "class 1", "class 2")
    assert images.mask_names == ("background", "lesion")
    assert (images.name, images.multi_label) == ("set", False)
    assert images.info["original_size"] == [20, 24]
    for name in SPLITS:
        arrays[f"{name}_labels"] = np.eye(3, dtype=np.uint8)[arrays[f"{name}_labels"][:, 0]]
    assert np.array_equal(open_npz(save(arrays), cache=cache).test.labels, images.test.labels)


def test_unknown_labels_and_masks(arrays: Arrays, save: Save, cache: Path) -> None:
    arrays["train_labels"] = arrays["train_labels"].astype(np.int16)
    arrays["train_labels"][2] = -1
    for name in SPLITS:
        known = np.arange(len(arrays[f"{name}_images"])) % 2 == 0
        arrays[f"{name}_has_mask"] = known
        arrays[f"{name}_masks"][~known] = 99
    split = open_npz(save(arrays), cache=cache).train
    assert split.labels[2] == -1
    assert split.has_mask.tolist() == [True, False] * 6
    assert not split.masks[1::2].any()
    assert np.array_equal(split.masks[::2], arrays["train_masks"][::2])


@pytest.mark.parametrize(
    ("train", "val", "stated", "expected"),
    [
        ([0, 1, 255], [0, 255], None, {"0": "background", "1": "lesion", "255": "ignore"}),
        ([0, 255], [255], 255, {"0": "background", "1": "lesion", "255": "ignore"}),
        ([0, 255], [0, 255], None, None),  # black and white
        ([0, 1], [0, 255], None, "expected mask classes"),
        ([0, 1, 255], [0, 200], None, "mask classes 0 to 63 .*, or 0 and 255.*, given 200"),
        ([0, 1], [0, 1], 254, r"ignored_mask: expected \[255\]"),
    ],
)
def test_ignored_pixels(
    arrays: Arrays, save: Save, cache: Path, train: Any, val: Any, stated: Any, expected: Any
) -> None:
    for name, values in (("train", train), ("val", val), ("test", val)):
        arrays[f"{name}_masks"] = np.resize(np.uint8(values), arrays[f"{name}_masks"].shape)
    path = save(arrays if stated is None else arrays | {"ignored_mask": np.array([stated])})
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            open_npz(path, cache=cache)
        return
    images = open_npz(path, cache=cache)
    for opened in (images, open_images(str(write_zarr(images, cache / "set.zarr")))):
        assert opened.info.get("mask_values") == expected
        assert opened.mask_names == ("background", "lesion")
        assert np.array_equal(opened.val.masks, arrays["val_masks"] // (1 if expected else 255))


def test_medsegbench_masks_without_classes(arrays: Arrays, save: Save, cache: Path) -> None:
    for name in SPLITS:
        arrays[f"{name}_label"] = arrays.pop(f"{name}_masks")[..., None]
        del arrays[f"{name}_labels"]
    images = open_npz(save(arrays), cache=cache)
    assert images.class_names == ()
    assert np.all(images.train.labels == -1)
    assert np.array_equal(images.train.masks, arrays["train_label"][..., 0])


@pytest.mark.parametrize("plain", [True, False])
def test_medsegbench_class_subsets(arrays: Arrays, save: Save, cache: Path, plain: bool) -> None:
    order = (2, 10, 1)  # not the order of names or numbers
    given: Arrays = {}
    for name in SPLITS:
        labels = arrays[f"{name}_labels"][:, 0]
        for index, number in enumerate(sorted(order)):
            given[f"{name}_images_C{number}"] = arrays[f"{name}_images"][labels == index]
            given[f"{name}_label_C{number}"] = arrays[f"{name}_masks"][labels == index]
        if plain:
            given[f"{name}_images"] = arrays[f"{name}_images"]
            given[f"{name}_label"] = arrays[f"{name}_masks"]
    given = dict(sorted(given.items(), reverse=True))
    images = open_npz(save(given), cache=cache)
    for name in SPLITS:
        split, labels = images.split(name), arrays[f"{name}_labels"][:, 0]
        sequence = np.argsort(labels, kind="stable")
        assert np.array_equal(split.labels, labels[sequence])
        assert np.array_equal(split.images, arrays[f"{name}_images"][sequence])
        assert np.array_equal(split.masks, arrays[f"{name}_masks"][sequence])
    assert images.class_names == ("class 0", "class 1", "class 2")


U8, OBJECTS = np.uint8, np.full((12, 1), None, dtype=object)
BAD: dict[str, tuple[dict[str, object], str]] = {
    "missing key": ({"val_images": None}, "val_images: expected this key, given class"),
    "float images": ({"train_images": np.zeros((12, 20, 24))}, "expected uint8.*given float64"),
    "other size": (
        {"val_images": np.zeros((4, 9, 24), U8), "val_masks": np.zeros((4, 9, 24), U8)},
        r"val_images: expected images of \(20, 24\) as in train, given \(9, 24\)",
    ),
    "too few labels": ({"train_labels": np.zeros(11, int)}, r"expected 12 integers.*\(11,\)"),
    "label -2": ({"val_labels": np.full(4, -2)}, "val_labels: expected labels from 0.*given -2"),
    "unseen label": ({"test_labels": np.full(6, 3)}, "from 0 to 2, as in train.*given 3"),
    "mask size": ({"val_masks": np.zeros((4, 20, 25), U8)}, r"val_masks.*\(4, 20, 24\)"),
    "unseen mask": (
        {"test_masks": np.full((6, 20, 24), 2, U8)},
        "test_masks: expected mask classes of 0 to 1, as in train or mask_names, given 2",
    ),
    "objects": ({"train_labels": OBJECTS}, "train_labels.*pickled objects"),
    "Fortran": ({"train_images": np.zeros((12, 20, 24), U8, order="F")}, "expected C order"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content_is_one_clear_line_and_leaves_nothing(
    arrays: Arrays, save: Save, cache: Path, left_in: Callable[[Path], list[str]], case: str
) -> None:
    changes, expected = BAD[case]
    if {"class_names", "mask_names"} & set(changes) or "given class" in expected:
        arrays = {"class_names": np.array(["a", "b", "c"])} | arrays
    path = save({key: value for key, value in {**arrays, **changes}.items() if value is not None})
    with pytest.raises(DataError, match=expected) as caught:
        open_npz(path, cache=cache)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert left_in(cache) == []


def test_a_changed_checksum(arrays: Arrays, tmp_path: Path, cache: Path) -> None:
    """A pixel can't be changed in deflate; tests/fuzz changes all else."""
    path = _zip(tmp_path, arrays, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        recorded = archive.getinfo("val_images.npy").CRC.to_bytes(4, "little")
    changed = bytes(byte ^ 1 for byte in recorded)
    path.write_bytes(path.read_bytes().replace(recorded, changed))
    with pytest.raises(DataError, match=r"set\.npz: .*expected a whole \.npz"):
        open_npz(path, cache=cache)


def _zip(
    folder: Path, arrays: Arrays, compression: int = zipfile.ZIP_STORED, **members: bytes
) -> Path:
    """Write arrays and `members` as they are."""
    with zipfile.ZipFile(folder / "set.npz", "w", compression) as archive:
        for key, value in arrays.items():
            if key not in members:
                np.save(buffer := io.BytesIO(), value)
                archive.writestr(f"{key}.npy", buffer.getvalue())
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return folder / "set.npz"


def _member(header: bytes, content: bytes = b"12") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def _shape(shape: str) -> bytes:
    return _member(b"{'descr':'|u1','fortran_order':False,'shape':(%b)}\n" % shape.encode())


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (_member(b"{'descr': '|u1'"), "damaged"),  # numpy: TokenError
        (_shape("9000000,2,2"), ".* bytes by its header"),
        (_shape("-1,2,2"), "expected at least one axis"),
    ],
)
def test_headers_are_not_trusted(
    arrays: Arrays, tmp_path: Path, cache: Path, member: bytes, expected: str
) -> None:
    with pytest.raises(DataError, match=f"train_images: .*{expected}"):
        open_npz(_zip(tmp_path, arrays, train_images=member), cache=cache)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_without_bounds_or_twice(arrays: Arrays, tmp_path: Path, cache: Path) -> None:
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(DataError, match="stored or deflated"):
            open_npz(_zip(tmp_path, arrays, compression), cache=cache)
    path = _zip(tmp_path, arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("val_labels.npy", b"second")
    with pytest.raises(DataError, match="val_labels: expected one array"):
        open_npz(path, cache=cache)


def test_a_file_that_changes_while_it_is_read_is_not_stored_under_its_old_hash(
    arrays: Arrays, save: Save, cache: Path, left_in: Callable[[Path], list[str]], waiting: Any
) -> None:
    path = save(arrays)
    arrays["train_images"] = 255 - arrays["train_images"]
    other = save(arrays, "other.npz")
    with pytest.raises(DataError, match="changed while it was read"):
        open_npz(path, cache=cache, progress=waiting(lambda: other.replace(path)))
    assert left_in(cache) == []
    assert np.array_equal(open_npz(path, cache=cache).train.images, arrays["train_images"])
