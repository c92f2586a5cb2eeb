"""Volumes from NIfTI, MetaImage, NRRD, TIFF and DICOM series, of any spacing and orientation."""

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medduet import DataError, open_images
from medduet.data.reading.core import ReadOptions, channel_paths
from medduet.data.reading.images import opened, read_pictures
from medduet.utils.files import write_json

nib = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")

SaveSeries = Callable[..., list[Path]]
RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 200, (16, 20, 18)).astype(np.int16)  # slices, rows, columns
VOLUME[1:3, 2:5, 3:9] = 255
MASK = (VOLUME == 255).astype(np.uint8)
PLACED = np.array([[-0.5, 0, 0, 7], [0, -0.5, 0, -3], [0, 0, 3, 11], [0, 0, 0, 1]])
"""Spacing 3 mm between slices and 0.5 within; columns to the left, rows to posterior."""


def save_nifti(
    path: Path, volume: np.ndarray, affine: np.ndarray = PLACED, turn: Any = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume.T, affine)
    nib.save(image if turn is None else image.as_reoriented(turn), path)


def test_all_orientations_are_one(tmp_path: Path, cache: Path) -> None:
    turns = product(permutations(range(3)), product((1, -1), repeat=3))
    for number, turn in enumerate(turns):
        axes = np.stack(turn, axis=1)
        save_nifti(tmp_path / "set" / f"{number}.nii.gz", VOLUME, turn=axes)
        save_nifti(tmp_path / "set" / f"{number}_mask.nii", MASK, turn=axes)
    images = open_images(str(tmp_path / "set"), cache=cache, split="made", group_by="none")
    assert images.size == VOLUME.shape
    assert images.info["spacing"] == [3, 0.5, 0.5]
    pool = images.pool()
    assert len(pool) == 48
    assert (pool.masks[:] == MASK).all()
    volumes = pool.images[:]
    assert (volumes == volumes[:1]).all()
    assert np.array_equal(volumes[0] == 255, MASK)


def test_one_spacing_and_one_size(tmp_path: Path, cache: Path) -> None:
    """Lesions keep their size in mm, at the middle of what is there, whatever the voxels were."""
    for number, (step, side) in enumerate([(1.0, 24), (1.0, 20), (0.5, 40), (2.0, 8)]):
        ball = np.linalg.norm(np.indices((side,) * 3) - (side - 1) / 2, axis=0) * step < 5
        affine = np.diag((step, step, step, 1))
        save_nifti(tmp_path / f"{number}.nii.gz", np.float32(ball * 3 + 1), affine)
        save_nifti(tmp_path / f"{number}_mask.nii.gz", np.uint8(ball), affine)
    images = open_images(str(tmp_path), cache=cache, split="made", group_by="none")
    assert images.size == (24, 24, 24)  # all but the last are 20 mm or 24
    note = "4 volumes (slices, rows, columns) in voxels of 1 x 1 x 1 mm, the median of the set"
    assert note in images.info["notes"][0]
    for mask in images.pool().masks[:]:
        assert np.allclose(mask.sum(), 4 / 3 * np.pi * 5**3, rtol=0.2)
        assert np.allclose(np.argwhere(mask).mean(axis=0), 11.5, atol=0.6)
    halves = open_images(str(tmp_path), cache=cache, spacing=(2,), split="made", group_by="none")
    assert halves.size == (16, 16, 16)  # what networks take at least
    fitted = open_images(str(tmp_path), cache=cache, size=16, split="made", group_by="none")
    assert fitted.size == (16, 16, 16)
    assert fitted.info["spacing"] is None


def test_nnunets_layout_has_names_a_window_and_images_without_masks(
    tmp_path: Path, cache: Path
) -> None:
    values = RNG.normal(0, 300, (12, *VOLUME.shape)).astype(np.int16)
    masks = np.zeros(values.shape, np.uint8)
    masks[:, 2:9, 4:12, 5:14] = 1
    masks[:, 4:6, 6:9, 7:10] = 2
    for number, (volume, mask) in enumerate(zip(values, masks, strict=True)):
        part = "Ts" if number > 9 else "Tr"
        save_nifti(tmp_path / f"images{part}" / f"case_{number}_0000.nii.gz", volume)
        if part == "Tr":
            save_nifti(tmp_path / "labelsTr" / f"case_{number}.nii.gz", mask)
    options = {"cache": cache, "group_by": "none"}
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "tumour": 2}}
    former = {"modality": {"0": "CT"}, "labels": {"0": "nothing", "1": "organ", "2": "tumour"}}
    for about in (described, former):
        write_json(tmp_path / "dataset.json", about)
        images = open_images(str(tmp_path), **options)
        assert images.mask_names == ("background", "organ", "tumour")
        assert len(images.pool()) == 10
        notes = " ".join(images.info["notes"])
        assert "2 images of test without class and mask are left out, and the others are" in notes
        low, high = np.percentile(values[:10][masks[:10] > 0], (0.5, 99.5))
        centre, width = images.info["window"]
        assert [centre - width / 2, centre + width / 2] == pytest.approx([low, high], abs=15)
        shown = np.clip((values[:10] - centre) / width + 0.5, 0, 1) * 255
        found = images.pool().images[:].astype(float)  # in the order of splits
        assert np.abs(np.sort(found, axis=0) - np.sort(shown, axis=0)).max() <= 0.51
    assert f"CT: {centre - width / 2:g} is black and {centre + width / 2:g} white" in notes
    typed = open_images(str(tmp_path), window=(40, 400), modality="mri", **options)
    assert (typed.info["window"], typed.info["modality"]) == ([40, 400], "mri")
    own = open_images(str(tmp_path), modality="mri", window="own", **options)
    assert own.info["window"] is None
    write_json(tmp_path / "dataset.json", {**described, "labels": {"whole": [1, 2], "core": 2}})
    assert open_images(str(tmp_path), **options).mask_names == ("background", "mask 1", "mask 2")
    (tmp_path / "dataset.json").write_text("of something else")
    assert open_images(str(tmp_path), **options).info["modality"] == "auto"


def test_mr_is_shown_by_its_z_score(tmp_path: Path, cache: Path) -> None:
    """Scanners multiply and shift values as they like; air is the least value, and not counted."""
    body = np.pad(np.random.default_rng(1).gamma(4, 50, (14, 18, 16)), 1).astype(np.float32)
    body[3, 3, 3:6] = 3000
    for number, (factor, offset) in enumerate([(1, 0), (7, 30), (0.01, -5)]):
        save_nifti(tmp_path / f"{number}.nii.gz", body * factor + offset)
    images = open_images(
        str(tmp_path),
        cache=cache,
        split="made",
        group_by="none",
        modality="mri",
        spacing=(3, 0.5, 0.5),
    )
    assert "MR: each volume is shown by its z-score, cut at -4 and 4" in images.info["notes"]
    assert images.info["window"] == "zscore"
    tissue = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "0.nii.gz")))
    score = (body - tissue[tissue > 0].mean()) / tissue[tissue > 0].std()
    for volume in images.pool().images[:]:
        assert np.abs(volume / 255 * 8 - 4 - score.clip(-4, 4)).max() <= 0.017
    body[0, 0, 0] = -0.01  # as splines leave: air is 0 still
    for number, values in enumerate((body, np.uint8(body.clip(0, 255)), np.uint8(body / 13))):
        save_nifti(tmp_path / "other" / f"{number}.nii.gz", values)
    options = {"cache": cache, "split": "made", "group_by": "none", "modality": "mri"}
    one, *bytes_ = open_images(str(tmp_path / "other"), **options).pool().images[:]
    assert np.abs(one.astype(int) - images.pool().images[:][0]).max() <= 2
    assert all(len(np.unique(each)) > 60 for each in bytes_)  # 8 bits, too


def test_channels_of_nnunet(tmp_path: Path, cache: Path) -> None:
    """Each channel is shown by itself, whatever the axes of its file, and keeps its number."""
    values = np.random.default_rng(2).gamma(4, 50, (6, 3, *VOLUME.shape)).astype(np.float32)
    for number, channels in enumerate(values):
        for k, volume in enumerate(channels):
            turn = np.array([(2, 1), (0, -1), (1, 1)]) if k == 1 else None
            path = tmp_path / "imagesTr" / f"case_{number}_{k:04}.nii.gz"
            save_nifti(path, volume * (k + 1), turn=turn)
        save_nifti(tmp_path / "labelsTr" / f"case_{number}.nii.gz", MASK)
    about = {"channel_names": {"0": "T1", "1": "FLAIR", "2": "ADC"}, "labels": {"tumour": 1}}
    write_json(tmp_path / "dataset.json", about)
    options = {"cache": cache, "split": "made", "group_by": "none"}
    images = open_images(str(tmp_path), **options)
    assert (images.in_channels, images.size, images.dims) == (3, VOLUME.shape, 3)
    assert images.train.batch(np.arange(2)).image.shape == (2, 3, *VOLUME.shape)
    assert [images.info[x] for x in ("window", "modality")] == ["zscore", "mri"]
    for row, name in enumerate(images.pool().ids.tolist()):
        for k in range(3):
            path = tmp_path / "imagesTr" / Path(name).name.replace("_0000", f"_{k:04}")
            inside = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"))
            score = (inside - inside.mean()) / inside.std()  # no air here, but for the least value
            shown = images.pool().images[:][row, ..., k] / 255 * 8 - 4
            assert np.abs(shown - score.clip(-4, 4)).max() <= 0.03
    (tmp_path / "dataset.json").unlink()
    assert open_images(str(tmp_path), **options).in_channels == 3  # masks tell
    moved = PLACED.copy()
    moved[0, 3] += 5
    other = tmp_path / "imagesTr" / "case_3_0002.nii.gz"
    save_nifti(other, values[3, 2], moved)
    with pytest.raises(DataError, match=r"case_3_0002.*expected the affine of its image"):
        open_images(str(tmp_path), **options)
    save_nifti(other, values[3, 2][:-1])
    with pytest.raises(DataError, match=r"case_3_0002.*expected the shape of case_3_0000"):
        open_images(str(tmp_path), **options)
    other.unlink()
    with pytest.raises(DataError, match=r"as many channels of each, given 2 of .*and 3 of"):
        open_images(str(tmp_path), **options)
    for path in (tmp_path / "imagesTr").glob("*_0002.nii.gz"):
        path.unlink()
    write_json(tmp_path / "dataset.json", about)
    with pytest.raises(DataError, match="names 3 channels, but images have 2"):
        open_images(str(tmp_path), **options)
    (tmp_path / "dataset.json").unlink()
    rows = [f"imagesTr/case_{k}_0000.nii.gz,labelsTr/case_{k}.nii.gz" for k in range(6)]
    (tmp_path / "table.csv").write_text("\n".join(["path,mask", *rows]))
    assert open_images(str(tmp_path / "table.csv"), **options).in_channels == 2
    rows += ["imagesTr/case_0_0001.nii.gz,"]
    (tmp_path / "table.csv").write_text("\n".join(["path,mask", *rows]))
    with pytest.raises(DataError, match=r"first channels, NAME_0000, alone, given case_0_0001"):
        open_images(str(tmp_path / "table.csv"), **options)
    rows = [f"case_{k}.nii.gz,labelsTr/case_{k}.nii.gz" for k in range(6)]
    (tmp_path / "table.csv").write_text("\n".join(["path,mask", *rows]))
    with pytest.raises(DataError, match=r"an image and its mask, given one file for both"):
        open_images(str(tmp_path / "table.csv"), **options)


@pytest.mark.parametrize("name", ["BraTS_00001_t1.nii.gz", "c_00003.nii.gz", "c_0000_0001.nii"])
def test_other_numbers_are_no_channels(name: str) -> None:
    with pytest.raises(DataError, match="a volume of 2 channels, NAME_0000"):
        channel_paths(Path(name), 2)


def test_levels_of_thick_slices_are_told(tmp_path: Path, cache: Path) -> None:
    thick = np.diag((-3, -0.5, 0.5, 1))  # as of sagittal slices
    for number in range(3):
        save_nifti(tmp_path / f"{number}.nii.gz", np.roll(VOLUME, number, axis=2), thick)
    images = open_images(str(tmp_path), cache=cache, split="made", group_by="none")
    assert images.info["spacing"] == [0.5, 0.5, 3]
    note = "levels that leave thick axes alone in MedDuet's U-Nets: 0 0 2"
    assert note in images.info["notes"]


def itk_series(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("ending", ["nii.gz", "mha", "mhd", "nrrd"])
def test_a_series_with_a_mask_from_itk(
    tmp_path: Path, cache: Path, save_series: SaveSeries, ending: str
) -> None:
    """SimpleITK reads the same volume, and a mask that it writes lies on the same voxels."""
    rows = ["path,label,mask"]
    (tmp_path / "masks").mkdir()
    for number in range(10):
        save_series(folder := tmp_path / f"case {number}", np.roll(VOLUME, number, axis=1))
        image = itk_series(folder)
        assert np.array_equal(sitk.GetArrayFromImage(image), np.roll(VOLUME, number, axis=1))
        mask = sitk.Cast(image == 255, sitk.sitkUInt8)
        sitk.WriteImage(mask, str(tmp_path / "masks" / f"case {number}.{ending}"))
        rows.append(f"case {number},{number % 2},masks/case {number}.{ending}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    images = open_images(str(tmp_path / "set.csv"), cache=cache)
    assert images.size == VOLUME.shape
    assert images.info["spacing"] == [3, 0.5, 0.5]
    pool = images.pool()
    assert ((pool.images[:] == 255) == pool.masks[:]).all()
    assert images.class_names == ("0", "1")
    if ending == "mhd":  # the header alone stays as it was
        (tmp_path / "masks" / "case 0.raw").write_bytes(bytes(VOLUME.size))
        assert open_images(str(tmp_path / "set.csv"), cache=cache).fingerprint != images.fingerprint


def test_an_open_file_is_not_taken_for_one_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = sitk.GetImageFromArray(VOLUME.astype(np.uint8))
    sitk.WriteImage(other, "image.dcm")
    Path("image.dcm").rename("image")  # ITK reads it by its content
    sitk.WriteImage(other, "upload.nrrd")
    refused = pytest.raises(DataError, match="expected NRRD as a file, given an upload")
    with Path("upload.nrrd").open("rb") as file, refused:
        read_pictures(Path("image"), ReadOptions((8, 8)), file)


def test_damaged_files_are_named_and_stop_nothing_else(tmp_path: Path, cache: Path) -> None:
    for number in range(10):
        save_nifti(path := tmp_path / f"{number}.nii.gz", VOLUME)
    content = bytearray(path.read_bytes())
    content[20:60] = b"\xff" * 40  # what gzip can't unpack
    path.write_bytes(content)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + b"\xff" * 99)
    with pytest.raises(DataError, match=r"2 of 11 files that can't be used: .*9\.nii\.gz"):
        open_images(str(tmp_path), cache=cache)


def test_folders_of_slices_are_volumes(
    tmp_path: Path, cache: Path, save_series: SaveSeries
) -> None:
    for number in range(10):
        save_series(tmp_path / f"{'ab'[number % 2]}" / f"case {number}", VOLUME)
    images = open_images(str(tmp_path), cache=cache, group_by="given")
    assert (images.size, len(images.pool()), images.class_names) == (VOLUME.shape, 10, ("a", "b"))
    assert "10 folders of DICOM slices, each a volume" in images.info["notes"][0]
    assert len(np.unique(images.pool().groups)) == 10
    loose = open_images(str(tmp_path), cache=cache, dims=2, size=12, group_by="given")
    assert (loose.size, len(loose.pool())) == ((12, 12), 160)


def test_images_of_one_patient_stay_together(
    tmp_path: Path, cache: Path, save_series: SaveSeries
) -> None:
    for name in "abc":
        save_series(tmp_path / name, VOLUME, PatientID=lambda k: f"P{k // 4}")
    images = open_images(str(tmp_path), cache=cache, dims=2, size=16, group_by="given")
    assert [len(np.unique(images.split(x).groups)) for x in ("train", "val", "test")] == [2, 1, 1]
    assert len(np.unique(images.pool().groups)) == 4
    assert "groups are patients, by the PatientID of DICOM" in images.info["notes"]


SERIES: list[tuple[dict[str, Callable[[int], Any]], str]] = [
    (
        {"SeriesInstanceUID": lambda k: f"1.2.{k % 2 + 3}"},
        r"one DICOM series, given 1.2.\d \(8 f",
    ),
    ({"ImagePositionPatient": lambda k: [0, 0, 3 * k + 3 * (k > 2)]}, "none missing, given 6 mm"),
    ({"ImagePositionPatient": lambda k: [0, 0, k // 2]}, "several at one, as over time"),
    ({"ImagePositionPatient": lambda k: None}, "slices with position, orientation and spacing"),
    ({"PixelSpacing": lambda k: [0.5, 0.5 + 0.1 * (k > 3)]}, "slices of one size"),
    (
        {"ImageOrientationPatient": lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, 1]},
        "in par",
    ),
]


@pytest.mark.parametrize(("changes", "message"), SERIES)
def test_series_that_make_no_volume(
    tmp_path: Path,
    cache: Path,
    save_series: SaveSeries,
    changes: dict[str, Callable[[int], Any]],
    message: str,
) -> None:
    save_series(tmp_path / "case", VOLUME, **changes)
    (tmp_path / "set.csv").write_text("path\ncase\n")
    with pytest.raises(DataError, match=message):
        open_images(str(tmp_path / "set.csv"), cache=cache)


def test_slices_with_windows_of_their_own(
    tmp_path: Path, cache: Path, save_series: SaveSeries
) -> None:
    windows = {"WindowCenter": lambda k: 100 + k, "WindowWidth": lambda k: 300}
    for number in range(10):
        save_series(tmp_path / f"case {number}", np.full_like(VOLUME, 90), **windows)
    images = open_images(str(tmp_path), cache=cache, group_by="none")
    assert len(np.unique(images.train.images[:])) == 1
    assert "windows of their own: the median is used" in str(images.info["notes"])


def test_slices_with_labels_of_their_own_stay_images(
    tmp_path: Path, cache: Path, save_series: SaveSeries
) -> None:
    paths = save_series(tmp_path / "case", VOLUME)
    rows = [f"case/{path.name},{number % 2}" for number, path in enumerate(paths)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    images = open_images(str(tmp_path / "set.csv"), cache=cache, group_by="none", size=20)
    assert (images.dims, len(images.pool())) == (2, 16)


def test_a_tilted_gantry_is_told(tmp_path: Path, cache: Path, save_series: SaveSeries) -> None:
    tilted = {"ImagePositionPatient": lambda k: [0, k, 3 * k]}
    for number in range(10):
        save_series(tmp_path / f"case {number}", VOLUME, **tilted)
    images = open_images(str(tmp_path), cache=cache, group_by="none")
    assert "10 of 10 files have slices that are tilted by 18.4 degrees" in str(images.info["notes"])
    assert images.info["spacing"] == pytest.approx([3, 0.5, 0.5])  # along the normal, not the table
    assert (images.class_names, len(np.unique(images.pool().groups))) == ((), 10)


def test_sheared_slices_are_apart_along_their_normal(tmp_path: Path) -> None:
    sheared = PLACED.copy()
    sheared[1, 2] = 1
    for order in permutations(range(3)):
        turn = np.stack([order, (1, 1, 1)], axis=1)
        save_nifti(path := tmp_path / "a.nii", VOLUME, sheared, turn)
        with opened(path) as source:
            assert source.spacing(3) == pytest.approx((3, 0.5, 0.5))


def test_a_folder_of_slices_and_more(tmp_path: Path, cache: Path, save_series: SaveSeries) -> None:
    for number in range(9):
        paths = save_series(tmp_path / f"{'ab'[number % 2]}" / f"case {number}", VOLUME)
    save_nifti(tmp_path / "a" / "case 0" / "other.nii.gz", VOLUME)
    images = open_images(str(tmp_path), cache=cache, group_by="none")
    assert len(images.pool()) == 9
    notes = images.info["notes"]
    assert notes[1] == "left out beside slices: other.nii.gz"
    paths[3].write_bytes(b"")
    with pytest.raises(DataError, match=rf"slices that can be read, given {paths[3].name}"):
        open_images(str(tmp_path), cache=cache)
    save_series(tmp_path / "b" / "scout", VOLUME[:1])
    with pytest.raises(DataError, match=r"scout: expected the slices of a DICOM series"):
        open_images(str(tmp_path), cache=cache)


def test_a_place_that_is_lost_is_not_made_up(tmp_path: Path, cache: Path) -> None:
    for number in range(3):
        image = nib.Nifti1Image(VOLUME.T, None)
        image.header["pixdim"][1:4] = 0 if number else 2
        nib.save(image, path := tmp_path / f"{number}.nii")
        content = bytearray(path.read_bytes())
        content[252:256] = bytes(4)  # the codes of its forms
        content[76:92] = np.float32([1, *[0 if number else 2] * 3]).tobytes()
        path.write_bytes(content)
    with pytest.raises(DataError, match="given none in 2 of 3 files, such as NIfTI"):
        open_images(str(tmp_path), cache=cache)
    save_nifti(tmp_path / "set" / "a.nii", VOLUME)
    pages = [Image.fromarray(x) for x in MASK]
    pages[0].save(tmp_path / "set" / "a_mask.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="a mask with a place, as its image has one, given TIFF"):
        open_images(str(tmp_path / "set"), cache=cache)
    save_nifti(tmp_path / "flat" / "a.nii", VOLUME[:, :, :1])  # one sagittal slice
    save_nifti(tmp_path / "flat" / "b.nii", VOLUME)
    with pytest.raises(DataError, match="expected several slices, or one that is the last axis"):
        open_images(str(tmp_path / "flat"), cache=cache)


def test_images_and_volumes_in_one_folder(tmp_path: Path, cache: Path) -> None:
    pages = [Image.fromarray(np.uint8(x)) for x in VOLUME]
    for name in "abc":
        pages[0].save(tmp_path / f"{name}.tif", save_all=True, append_images=pages[1:])
    images = open_images(str(tmp_path), cache=cache, group_by="none")
    assert (images.size, images.info["spacing"]) == (VOLUME.shape, [1, 1, 1])
    assert "of unknown spacing" in images.info["notes"][0]
    save_nifti(tmp_path / "placed.nii", VOLUME)
    with pytest.raises(DataError, match="given none in 3 of 4 files, such as TIFF: save them as"):
        open_images(str(tmp_path), cache=cache)
    save_nifti(tmp_path / "one.nii", VOLUME[:1])
    with pytest.raises(DataError, match=r"1 of 5 files with one slice, such as one.nii: --data.di"):
        open_images(str(tmp_path), cache=cache)
    assert len(open_images(str(tmp_path), cache=cache, dims=2, group_by="none").pool()) == 65
    for name in ("one.nii", "a.tif", "b.tif", "c.tif"):
        (tmp_path / name).unlink()
    save_nifti(tmp_path / "time.nii", np.zeros((*VOLUME.shape, 2)))
    with pytest.raises(DataError, match="expected a volume of 3 axes, given one of 2 x 18"):
        open_images(str(tmp_path), cache=cache)


def test_files_outside_are_not_read(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(720))
    folder = tmp_path / "set"
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(folder / "a.mhd"))
    text = (folder / "a.mhd").read_text()
    for name in ("../secret", str(tmp_path / "secret"), "LIST"):
        (folder / "a.mhd").write_text(text.replace("a.raw", name))
        with pytest.raises(DataError, match="voxels in it, or in a file beside it"):
            open_images(str(folder), cache=cache)
