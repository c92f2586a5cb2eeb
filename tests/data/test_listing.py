import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from medduet.data.listing import Item, Listing, list_folder
from medduet.errors import DataError, MissingFileError

Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Make a folder with empty files of these names."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "set"

    return make


def _items(listing: Listing) -> dict[str, Item]:
    return {item.name: item for item in listing.items}


def _masks(item: Item) -> list[str]:
    return [path.name for path in item.masks]


def test_sub_folders_are_classes(folder: Make) -> None:
    root = folder("ill/b.gif", "ill/a.JFIF", "well/c.tiff", "well/.x.png", "c_superpixels.png")
    (root / "well/d.JP2").touch()
    (root / "well/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (root / "well/README").touch()
    listing = list_folder(root)
    assert listing.name == "set"
    assert [item.name for item in listing.items] == [
        *("ill/a.JFIF", "ill/b.gif", "well/IM0001", "well/c.tiff")
    ]
    assert listing.notes == ("not read: 1 .jp2",)
    assert listing.class_names == ("ill", "well")
    assert [item.labels for item in listing.items] == [("ill",), ("ill",), ("well",), ("well",)]
    assert all(not item.split and not item.group and not item.masks for item in listing.items)


def test_masks_beside_images_as_in_busi(folder: Make) -> None:
    names = ["benign (1).png", "benign (1)_mask.png", "benign (1)_mask_1.png", "benign (10).png"]
    names += ["benign (2).png", "benign (2)_mask.png", "lost_mask.png"]
    listing = list_folder(folder(*(f"benign/{name}" for name in names)))
    items = _items(listing)
    assert [*items] == [f"benign/benign ({k}).png" for k in (1, 2, 10)]  # ordered as numbers
    assert [_masks(item) for item in items.values()] == [
        ["benign (1)_mask.png", "benign (1)_mask_1.png"],
        ["benign (2)_mask.png"],
        [],
    ]
    ((name, reason),) = listing.faults
    assert name.endswith("lost_mask.png")
    assert "an image of this name" in reason


@pytest.mark.parametrize(
    "names",
    [
        ("images/ill/x.png", "masks/ill/x.png", "images/well/y.png", "masks/well/y.png"),
        ("images/ill/x.jpg", "masks/ill/x_mask.png", "images/well/y.jpg", "masks/well/y_mask.png"),
        ("images/ill/x.png", "masks/x.png", "images/well/y.png", "masks/y.png"),  # masks all in one
        ("ill/images/x.png", "ill/masks/x.png", "well/images/y.png", "well/masks/y.png"),
        ("ill/images/p/x.png", "ill/masks/p/x_mask.png", "well/img/p/y.png", "well/mask/y.png"),
        ("ill/x.png", "ill/masks/x.png", "well/y.png", "well/masks/y_mask.png"),
        ("ill/x.png", "ill_masks/x.png", "well/y.png", "well_mask/y.png"),
        ("ill_images/x.png", "ill_masks/x.png", "well_images/y.png", "well_masks/y.png"),
        ("ill/x.png", "masks/ill/x.png", "well/y.png", "masks/well/y.png"),
        ("ill/images/x.png", "ill/masks/x.png", "well/y.png", "well/y_mask.png"),
        ("train/images/a.png", "train/masks/a.png", "test/images/b.png", "test/masks/b.png"),
        ("images/train/a.png", "masks/train/a.png", "images/test/b.png", "masks/test/b.png"),
        ("Train/a.png", "Train-mask/a_mask.png", "Test/b.png", "Test-masks/b.png"),
        ("train/a.png", "test/b.png", "masks/a.png", "masks/b.png"),
        ("train/a.png", "test/b.png", "masks/train/a.png", "masks/test/b.png"),
        ("imagesTr/a_0000.png", "labelsTr/a.png", "imagesTs/b_0000.png", "labelsTs/b.png"),
        (
            *("X_Task1-2_Training_Input/a.jpg", "X_Task1_Training_GroundTruth/a_segmentation.png"),
            *("X_Task1-2_Test_Input/b.jpg", "X_Task1_Test_GroundTruth/b_segmentation.png"),
        ),
        ("Train_Data/a.png", "Train_GT/a.png", "Test_Data/b.png", "Test_GT/b.png"),
        ("train/a.png", "trainannot/a.png", "test/b.png", "testannot/b.png"),
        ("TrainSet/image/a.png", "TrainSet/mask/a.png", "TestSet/b.png", "TestSet/b_mask.png"),
        ("a/b/images/ill/x.png", "a/b/gt/x.png", "a/b/images/well/y.png", "a/b/gt/y.png"),
        ("ill/scan.nii", "ill/seg.nii.gz", "well/scan.nii", "well/seg.nii.gz"),
        ("ill/1.jpg", "all_segs/1_seg.png", "well/2.jpg", "all_segs/2_seg.png"),
        ("train/vol-1.nii", "train/seg-1.nii", "test/vol-10.nii", "test/seg-10.nii"),
    ],
)
def test_masks_in_a_parallel_folder(names: tuple[str, ...], folder: Make) -> None:
    listing = list_folder(folder(*names))
    splits = sorted(item.split for item in listing.items)
    assert (listing.class_names, splits) in [(("ill", "well"), ["", ""]), ((), ["test", "train"])]
    assert [len(item.masks) for item in listing.items] == [1, 1]
    assert not listing.faults


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        *(("x.png", f"x{end}.png") for end in ("_Mask", "_segmentation", "-mask", "_gt", "_MASK")),
        *(
            ("x.png", f"x{end}.tif")
            for end in ("_mask_left", "_mask_2", "_seg", ".label", "_gt (1)", "_anno", "_manual1")
        ),
        *(("x.jpg", f"{start}x.png") for start in ("mask_", "Seg-", "GT_")),
        *(("images/x.png", f"{folder}/x.png") for folder in ("labels", "gt", "Annotations", "SEG")),
        *(("images/x.png", f"{folder}/x.png") for folder in ("masks_png", "labelsBinary", "GT-ah")),
        ("\u539f\u56fe/x.png", "\u63a9\u819c/x.png"),
        ("caf\u00e9.png", "cafe\u0301_mask.png"),  # composed and decomposed letters
    ],
)
def test_names_of_masks(image: str, mask: str, folder: Make) -> None:
    root = folder(image, mask)
    listing = list_folder(root)
    ((name, item),) = _items(listing).items()
    assert (name, item.labels, listing.faults) == (image, None, ())
    assert item.masks == (root / mask,)


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (("x.png", "x_wound.gif", "y_mask.png"), "*_wound.*"),
        (("images/x.png", "lung masks/x.png", "infection masks/x.png"), "lung masks/*"),
        (("ill/x.png", "ill/tumor/x_mask.png", "ill/mask/x.png"), "tumor/*"),
        (("images/21_train.tif", "drawn/21_manual1.gif", "mask/21_train_mask.gif"), "drawn/*"),
        (("part_1/x.jpg", "masks of all/x_segmentation.png"), "*_segmentation.png"),
        (("image/x.png", "label/EX/x.tif", "label/HE/x.tif"), "label/EX/*"),
        (("volume-1.nii", "segmentation-1.nii"), "segmentation-*"),
        (("case_1/imaging.nii.gz", "case_1/segmentation.nii.gz"), "segmentation*"),
    ],
)
def test_masks_that_are_called_otherwise(names: tuple[str, ...], masks: str, folder: Make) -> None:
    root = folder(*names)
    (item,) = list_folder(root, Path(masks)).items
    assert (item.path, item.masks) == (root / names[0], (root / names[1],))
    with pytest.raises(MissingFileError, match="of masks at lost"):
        list_folder(root, Path("lost*"))


@pytest.mark.parametrize(
    "names",
    [
        ("a/img7.png", "a/img9_lesion.png"),
        ("c3/s_1.png", "c3/s_1_lesion.png", "c3/s_3_lesion.png", "c4/s_1.png", "c4/s_2.png"),
        ("ill/5.png", "ill/5_lesion.png", "well/5_lesion.png", "well/4.png"),
        ("s_1_left.png", "s_2.png", "s_2_lesion.png", "s_1_lesion.png"),
        ("a_1.png", "b_1.png", "1_lesion.png"),
    ],
)
def test_masks_without_their_image_are_not_given_to_others(
    names: tuple[str, ...], folder: Make
) -> None:
    root, wrong = folder(*names), "called as its image"
    try:
        listing = list_folder(root, Path("*_lesion.png"))
    except DataError as error:
        assert wrong in str(error)  # noqa: PT017 - it may also be one of several
    else:
        assert len(listing.faults) == 1
        assert all(len(item.masks) < 2 for item in listing.items)


def test_splits_classes_and_groups(folder: Make) -> None:
    names = ("train/ill/patient 1/a.png", "train/ill/patient 1/b.png", "train/well/patient 2/c.png")
    items = _items(list_folder(folder(*names, "validation/ill/d.png", "Test/well/e.png")))
    assert {item.split for item in items.values()} == {"train", "val", "test"}
    assert items[names[0]].group == "patient 1"
    assert items[names[0]].labels == ("ill",)
    assert items["validation/ill/d.png"].split == "val"
    assert items["Test/well/e.png"].group == ""
    cases = list_folder(folder(*(f"cases/p{k}/scan.nii.gz" for k in range(3))) / "cases").items
    assert [(item.labels, item.group) for item in cases] == [(None, f"p{k}") for k in range(3)]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("a/S/p1/40X/x.png", "a/S/p1/9X/y.png", "b/z.png"), ["a S/p1 ", "a S/p1 ", "b  "]),
        (("a/2019/40X/x.png", "a/part 2/y.png", "b/z.png"), ["a  ", "a  ", "b  "]),
        (("a/2019/p1/x.png", "b/2020/q/x.png", "b/y.png"), ["a 2019/p1 ", "b 2020/q ", "b  "]),
        (("a/40X/patient 1/x.png", "a/y.png", "b/z.png"), ["a 40X/patient 1 ", "a  ", "b  "]),
        ([f"{n}/{k}.png" for n in (2019, 2020, 2021) for k in "ab"], ["2019  ", "2019  "]),
        ([f"im_{x}/im_{x}/{k}.png" for x in "ab" for k in "ab"], ["im_a  ", "im_a  "]),
        (("TR/a.png", "AR/a.png", "MR/a.png", "MR/b.png"), ["AR  ", "MR  "]),
        ([f"k/TCGA_CS_{n}/{n}.tif" for n in (1, 1, 22, 33)], ["- TCGA_CS_1 ", "- TCGA_CS_22 "]),
        ([f"train/patient0{n}/{n}.png" for n in range(3)] + ["test/pat-4/x.png"], ["- pat-4 test"]),
        (
            [f"LIDC-IDRI-00{n}/s/{k}.png" for n in range(10, 13) for k in "12"],
            ["- LIDC-IDRI-0010 "],
        ),
        (
            [f"{x}{s}/x.png" for x in ("images", "labels") for s in ("Va", "Tr")],
            ["-  train", "-  val"],
        ),
        ([f"subtype{n}/{k}.png" for n in range(3) for k in range(2)], ["subtype0  ", "subtype0  "]),
        (("trainval-image/x.png", "test-image/y.png"), ["-  test", "-  train"]),
        ([f"{x}_Set/{x}/1.png" for x in ("Training", "Evaluation")], ["-  val", "-  train"]),
        (("train/a/x.png", "train/a/w.png", "val/b/y.png", "test/z.png"), ["a  ", "a  ", "b  "]),
        (("train/a/x.png", "val/y.png", "test/a/z.png"), ["a  test", "a  train"]),
        (("TrainDataset/1.png", "TestDataset/CVC/2.png"), ["-  test", "-  train"]),
        (("train_1.png", "test_1.png"), ["-  ", "-  "]),
        ([f"{c}/person{n}_{c}.png" for n in range(3) for c in "ab"], ["a person0 ", "a person1 "]),
        ([f"TCGA_CS_49{n}1_199609_{k}.png" for n in range(3) for k in "12"], ["- TCGA_CS_4901 "]),
        ([f"HAM_images_part_{n % 2}/{n}.jpg" for n in range(4)], ["-  "] * 4),
        ([f"fold {n}/{label}/{n}.png" for n in range(2) for label in "ab"], ["a  ", "b  "] * 2),
        ([f"BraTS_0{n}_slice_{k}.png" for n in range(6) for k in "12"], ["- BraTS_00 "] * 2),
        ([f"SOB-14-{n}AB-{k}00X-01.png" for n in range(6) for k in "12"], ["- SOB-14-0AB "] * 2),
        ([f"0{n}_{side}_CC.png" for n in range(6) for side in "LR"], ["- 00 "] * 2 + ["- 01 "]),
        ([f"{x}_{y}_{n}.png" for n in "12" for x in "abcdef" for y in ("slice", 2019)], ["-  "]),
        ([f"CNV-{n}016042-{k}.png" for n in range(1, 7) for k in "12"], ["- CNV-1016042 "] * 2),
        ([f"case_00{n}.png" for n in range(9)] + ["slide-2021-7.png"], ["-  "]),
        ([f"Segmentation{x}/1.png" for x in ("Class", "Object")] + ["JPEGImages/1.png"], ["-  "]),
    ],
)
def test_what_folders_are(names: Sequence[str], read: list[str], folder: Make) -> None:
    items = list_folder(folder(*names)).items
    given = [f"{'|'.join(x.labels or '-')} {x.group} {x.split}" for x in items]
    assert given[: len(read)] == read


_BESIDE = "one folder for each of train, val and test.*given"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/1_mask.png", "a/2_mask.png"), r"called as masks are, such as a/1_mask\.png and a/2"),
        (("top/1/a.png", "top/2/b.png"), "top may be those, with groups .* called 1, 2; or 1, 2"),
        (
            [f"{x}/{y}/1.png" for x in ("NCT-100K", "CRC-VAL-7K") for y in "ab"],
            "NCT-100K may be .* a, b",
        ),
        (("imagesTr/b_0000.png", "imagesTr/a_0001.png", "labelsTr/a.png"), "the first channel"),
        (("train/a.png", "test/b.png", "more/c.png"), _BESIDE),
        (("train/a.png", "val_masks/a.png", "test/b.png"), _BESIDE),
        (("CXR_png/a.png", "test/b.png"), _BESIDE),
        (("colon/aca/a.png", "colon/n/b.png", "lung/scc/c.png"), "colon, lung .* aca, n, scc are"),
        ([f"{n}/{n % 2}/{k}.png" for n in range(12) for k in (0, n)], "or 0, 1 are the classes"),
        (("train/john/a.png", "test/mary/b.png"), "same classes in train and test, given .*john"),
        (
            ("images/a.png", "mask/a_mask.png", "1st_manual/a.png"),
            r"given 1st_manual, too: .* if it has the masks, add --data\.masks '1st_manual/\*'",
        ),
        (("images/21_train.tif", "masks/21_gt_a.gif"), "called as its image, given .*21_train"),
        (("images/1.png", "masks/a/1.png", "masks/b/1.png"), "one mask called as its image"),
        (
            ("images/ill/1.png", "images/well/1.png", "masks/1.png"),
            r"1\.png: expected a mask of one image, given 2 images",
        ),
        ((os.fsdecode(b"ill/\xff.png"),), r"ill/\\xff\.png: expected a name in UTF-8"),
    ],
)
def test_what_is_not_clear_is_not_guessed(
    names: tuple[str, ...], message: str, folder: Make
) -> None:
    with pytest.raises(DataError, match=message):
        list_folder(folder(*names))


@pytest.mark.parametrize("inside", [True, False])
def test_masks_in_a_folder_that_is_named(inside: bool, folder: Make, tmp_path: Path) -> None:
    root = folder("images/train/a_mask.png", "images/test/b.png", "drawn/b.png", "drawn/c.png")
    if not inside:
        (root / "drawn").rename(tmp_path / "drawn")
    masks = root / ".." / ("set/drawn" if inside else "drawn")
    listing = list_folder(root, masks)
    assert [(item.name, item.split, _masks(item)) for item in listing.items] == [
        ("images/test/b.png", "test", ["b.png"]),
        ("images/train/a_mask.png", "train", []),
    ]
    assert [Path(name).name for name, _ in listing.faults] == ["c.png"]
    with pytest.raises(DataError, match="nothing but masks beside a folder of images, given more"):
        list_folder(folder("more/z.png"), masks)


def test_links_are_followed_but_not_in_circles(folder: Make) -> None:
    root = folder("ill/a.png", "well/b.png", "one/none.txt", "two/none.txt")
    for link, target in {
        "ill/up": root,
        "well/self": ".",
        "well/loop": "loop",
        "other": "well",
        "one/to": "../two",
        "two/to": "../one",
    }.items():
        (root / link).symlink_to(target)
    names = [item.name for item in list_folder(root).items]
    assert names == ["ill/a.png", "other/b.png", "well/b.png"]


def test_what_may_not_be_read_is_not_left_out(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder("ill/a.png", "ill/IM0001")

    def refuse(path: Path, *arguments: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.*ill/IM0001"):
        list_folder(root)
