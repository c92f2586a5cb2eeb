"""Images at a common distance of pixels in mm, whatever theirs are."""

import asyncio
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medduet
from medduet import DataError, RunConfig, open_images, predict_files
from medduet.cli import main
from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import opened, read_pictures
from medduet.data.workers import WorkerPool
from medduet.inference.exported import BatchPrediction
from medduet.inference.graph import NetworkGraph

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")
uploads = pytest.importorskip("medduet.serve.uploads")

FILES = (  # distance of rows and columns, how the header tells it
    ((0.4, 0.4), "patient"),
    ((0.8, 0.5), "patient"),
    ((0.25, 0.4), "plane"),
    ((0.4, 0.25), "detector"),
    ((0.5, 0.5), "magnified"),
    ((0.3, 0.4), "ultrasound"),
    ((0.5, 0.4), "nifti"),
    ((0.3, 0.3), "mha"),
)


def ellipse(spacing: tuple[float, float], extent: tuple[float, float] = (24, 32)) -> np.ndarray:
    """Return a disc of 8 mm radius in an image of `extent` in mm."""
    rows, columns = (
        (np.arange(round(side / step)) + 0.5) * step - side / 2
        for side, step in zip(extent, spacing, strict=True)
    )
    return np.hypot(rows[:, None], columns) < 8


def save(folder: Path, number: int, extent: tuple[float, float] = (24, 32)) -> Path:
    """Save the disc, with its mask as PNG."""
    spacing, kind = FILES[number % len(FILES)]
    mask = ellipse(spacing, extent)
    values = (mask * 900 + 50 + number).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}_mask.png")
    if kind == "nifti":
        affine = np.diag([-spacing[1], -spacing[0], 1, 1])
        nib.save(nib.Nifti1Image(values.T[..., None], affine), path := folder / f"{number}.nii.gz")
        return path
    if kind == "mha":
        (image := sitk.GetImageFromArray(values)).SetSpacing(spacing[::-1])
        sitk.WriteImage(image, path := folder / f"{number}.mha")
        return path
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    of_detector = kind in ("detector", "magnified")  # the only spacing that ITK takes of X-rays
    storage = "ComputedRadiography" if of_detector else "SecondaryCapture"
    image.SOPClassUID = getattr(pydicom.uid, f"{storage}ImageStorage")
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.Rows, image.Columns = mask.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = values.astype("<u2").tobytes()
    match kind:
        case "patient" | "plane":
            image.PixelSpacing = [*spacing]
            image.ImagerPixelSpacing = [9, 9]
        case "detector":
            image.ImagerPixelSpacing = [*spacing]
        case "magnified":
            image.ImagerPixelSpacing = [2 * each for each in spacing]
            image.EstimatedRadiographicMagnificationFactor = 2
        case "ultrasound":
            region = pydicom.Dataset()
            region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
            region.PhysicalDeltaY, region.PhysicalDeltaX = (each / 10 for each in spacing)
            image.SequenceOfUltrasoundRegions = [region, region]
    if kind == "plane":
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        image.ImagePositionPatient = [3, 4, 5]
    image.save_as(path := folder / f"{number}.dcm", enforce_file_format=True)
    return path


@pytest.mark.parametrize("number", range(len(FILES)), ids=[kind for _, kind in FILES])
def test_a_disc_is_as_large_whatever_the_pixels(tmp_path: Path, number: int) -> None:
    path, (spacing, kind) = save(tmp_path, number), FILES[number]
    with opened(path) as source:
        assert source.spacing(2) == pytest.approx(spacing)
    if kind not in ("magnified", "ultrasound"):  # which ITK doesn't read
        assert sitk.ReadImage(str(path)).GetSpacing()[:2] == pytest.approx(spacing[::-1])
    options = ReadOptions((48, 72), window=(500.0, 1000.0), spacing=(0.5, 0.5))
    (picture,) = read_pictures(path, options)
    assert picture.fitted.shape == (48, 72)  # and black beside the 64 columns
    assert (picture.fitted > 120).sum() == pytest.approx(np.pi * 16**2, rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"ImagerPixelSpacing": None},
        {"ImagerPixelSpacing": [0, 0]},
        {"PixelSpacing": [0.4]},
        {"SequenceOfUltrasoundRegions": [pydicom.Dataset()], "ImagerPixelSpacing": None},
    ],
)
def test_files_that_do_not_tell_it(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save(tmp_path / "in", 3)
    image = pydicom.dcmread(path)
    for name, value in change.items():
        setattr(image, name, value)
    image.save_as(path)
    assert read_pictures(path, ReadOptions((32, 32)))[0].fitted.shape == (32, 32)
    with pytest.raises(DataError, match=r"3\.dcm: expected the distance of its pixels in mm"):
        read_pictures(path, ReadOptions((32, 32), spacing=(1.0, 1.0)))
    save(tmp_path / "in", 2)
    with pytest.raises(DataError, match=r"given none in 1 of 2, such as 3\.dcm: omit --spacing"):
        open_images(str(tmp_path / "in"), spacing=(1.0,), cache=tmp_path)


@pytest.fixture(scope="module")
def run(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spacing")
    for number in range(24):
        save(root / "set" / "ab"[number % 2], number)
    config = make_config(
        root / "run",
        data={"name": str(root / "set"), "size": None, "count": None, "spacing": (0.5,)}
        | {"group_by": "none", "window": (500.0, 1000.0)},
        train={"epochs": 1},
        objective={"tasks": ["classify", "segment"]},
    )
    return medduet.train(config).path


def test_masks_lie_on_their_images(run: Path) -> None:
    data = {"spacing": (0.5,), "window": (500.0, 1000.0), "group_by": "none"}
    images = open_images(str(run.parent / "set"), **data)
    assert "pixels of 0.5 x 0.5 mm (rows x columns)" in images.info["notes"]
    images = images.pool()
    assert images.images.shape == (24, 48, 64)
    for image, mask in zip(images.images[:], images.masks[:], strict=True):
        assert ((image > 120) != mask).mean() < 0.02  # whose edges are at the nearest pixels
        assert mask.sum() == pytest.approx(np.pi * 16**2, rel=0.04)
    with pytest.raises(DataError, match=r"--spacing pads: omit --data\.fit crop"):
        open_images(str(run.parent / "set"), **data, fit="crop")


def test_predictions_have_the_size_of_the_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert medduet.evaluate(run)["test"]["n"] > 0
    predict_files(run, [run.parent / "set"], tmp_path / "all")

    def exact(graph: NetworkGraph, image: np.ndarray) -> BatchPrediction:
        return BatchPrediction(np.array([[0.25, 0.75]]), np.uint8(image[:, 0] >= 120))

    monkeypatch.setattr(NetworkGraph, "predict", exact)
    for number in range(len(FILES)):
        path = save(tmp_path, number, (48, 48))  # larger than any of the training
        answer, (spacing, _) = medduet.Predictor(run)(path), FILES[number]
        truth = ellipse(spacing, (48, 48))
        assert answer.spacing is None
        assert answer.mask.shape == truth.shape
        assert (answer.mask != truth).sum() < 0.08 * truth.sum()
    Image.new("L", (40, 40), 9).save(tmp_path / "x.png")
    words = f"predict {run} {tmp_path / 'x.png'} --out {tmp_path / 'out'}"
    assert main(words.split()) != 0
    assert "expected the distance of its pixels in mm" in capsys.readouterr().out


def test_spacings_that_make_nothing_or_too_much(run: Path, tmp_path: Path) -> None:
    folder, data = run.parent / "set", {"window": (500.0, 1000.0), "group_by": "none"}
    for spacing in (0.001, 100.0):
        with pytest.raises(DataError, match=r"expected images of 16 to .*: --spacing is in mm"):
            open_images(str(folder), spacing=(spacing,), **data)
    notes = open_images(str(folder), spacing=(16.0, 1.0), **data).info["notes"]
    assert not any("keeps them" in note for note in notes)
    image = pydicom.dcmread(save(tmp_path, 0))
    image.PixelSpacing = [4, 4]  # ten times too much
    image.save_as(content := BytesIO())
    room = uploads.Room(uploads.Limits(max_pixels=100_000))
    with WorkerPool(1) as readers, room.seat() as seat:
        options = medduet.Predictor(run).options
        with pytest.raises(
            uploads.HTTPException, match=r"0\.1 megapixels, given 0\.307 at the spacing"
        ):
            asyncio.run(uploads.decode(content.getvalue(), options, seat, readers))
    image.PixelSpacing = [400, 400]  # as of a damaged header
    image.save_as(tmp_path / "0.dcm")
    with pytest.raises(DataError, match=r"at most .* pixels, given 48000 x 64000, as its"):
        medduet.Predictor(run)(tmp_path / "0.dcm")


def test_units_of_nifti_and_headers_of_itk_without_spacing(tmp_path: Path) -> None:
    image = nib.load(save(tmp_path, 6))
    for unit, factor in (("meter", 1e-3), ("micron", 1e3), ("mm", 1)):
        affine = np.diag([factor, factor, factor, 1]) @ image.affine
        other = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        other.header.set_xyzt_units(unit)
        nib.save(other, path := tmp_path / f"{unit}.nii")
        with opened(path) as source:
            assert source.spacing(2) == pytest.approx(FILES[6][0])
    mha, nrrd = save(tmp_path, 7), tmp_path / "7.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(mha)), nrrd)
    for path in (mha, nrrd):
        with opened(path) as source:
            assert source.spacing(2) == pytest.approx(FILES[7][0])
        lines = path.read_bytes().split(b"\n", 20)
        told = (b"ElementSpacing", b"space directions", b"spacings")
        path.write_bytes(b"\n".join(line for line in lines if not line.startswith(told)))
        with opened(path) as source:
            assert source.spacing(2) == ()
