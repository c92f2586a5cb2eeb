"""Predictions for DICOM images are DICOM that refers to them."""

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet import predict_files

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


def write_dicom(path: Path, frames: int = 1, **changes: str) -> None:
    """Write an ultrasound image as a scanner does."""
    from pydicom import uid

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (frames, 6, 6), dtype=np.uint8)
    film = uid.UltrasoundMultiFrameImageStorage
    data = pydicom.Dataset()
    data.SOPClassUID = uid.UltrasoundImageStorage if frames == 1 else film
    for name in ("AccessionNumber", "ReferringPhysicianName", "PatientOrientation"):
        setattr(data, name, "")
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(data, name, uid.generate_uid())
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "1", "A^B", "", "O"
    data.StudyDate, data.StudyTime, data.StudyID = "20250101", "120000", "1"
    data.Modality, data.SeriesNumber, data.InstanceNumber = "US", 1, 1
    data.Manufacturer, data.ImageType = "Scanner", ["ORIGINAL", "PRIMARY"]
    data.Rows, data.Columns, data.SamplesPerPixel = 48, 60, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = coarse.repeat(8, axis=1).repeat(10, axis=2).tobytes()
    if frames > 1:
        data.NumberOfFrames, data.FrameTime, data.FrameIncrementPointer = frames, "40", 0x00181063
    for name, value in changes.items():
        setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("frames", [1, 3])
def test_dicom_gives_dicom(bundle: Path, tmp_path: Path, frames: int) -> None:
    write_dicom(tmp_path / "scan.dcm", frames)
    out = tmp_path / "out"
    assert not predict_files(bundle, [tmp_path / "scan.dcm"], out).broken
    rows = table(out)
    assert len(rows) == frames
    source = pydicom.dcmread(tmp_path / "scan.dcm")
    # Nothing tells how the frames of the film lie in space, so each has a segmentation.
    segmentations = [f"scan.dcm/{n:04}-seg.dcm" for n in range(1, frames + 1)]
    if frames == 1:
        segmentations = ["scan-seg.dcm"]
    assert rows[0]["dicom"].split(";") == [f"dicom/{n}" for n in (*segmentations, "scan-sr.dcm")]
    for number, (name, row) in enumerate(zip(segmentations, rows, strict=True), start=1):
        written = pydicom.dcmread(out / "dicom" / name)
        with Image.open(out / row["mask"]) as image:
            mask = np.asarray(image)
        assert 0 < mask.sum() < mask.size
        np.testing.assert_array_equal(written.pixel_array.reshape(48, 60), mask)
        assert written.SegmentSequence[0].SegmentLabel == "lesion"
        assert written.StudyInstanceUID == source.StudyInstanceUID
        assert written.PatientID == source.PatientID
        group = written.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        referenced = group.SourceImageSequence[0]
        assert referenced.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert referenced.ReferencedSOPClassUID == source.SOPClassUID
        assert referenced.get("ReferencedFrameNumber") == (number if frames > 1 else None)
    report = pydicom.dcmread(out / "dicom" / "scan-sr.dcm")
    assert report.StudyInstanceUID == source.StudyInstanceUID
    text = str(report)
    assert text.count("Predicted class") == text.count("Probability of class 1") == frames
    assert f"{float(rows[0]['p_class 1']):g}"[:6] in text


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy of dicom3tools")
@pytest.mark.parametrize("frames", [1, 3])
def test_dciodvfy_finds_no_errors(bundle: Path, tmp_path: Path, frames: int) -> None:
    write_dicom(tmp_path / "scan.dcm", frames)
    predict_files(bundle, [tmp_path / "scan.dcm"], tmp_path / "out")
    written = sorted((tmp_path / "out" / "dicom").rglob("*-*.dcm"))
    assert len(written) == frames + 1
    for path in written:
        words = ["dciodvfy", str(path)]
        checked = subprocess.run(words, capture_output=True, text=True, check=False)
        assert not [line for line in checked.stderr.splitlines() if line.startswith("Error")]


def test_dicom_without_a_study_is_told(bundle: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.dcm"
    write_dicom(scan, StudyInstanceUID="")
    record = predict_files(bundle, [scan], tmp_path / "out")
    assert "expected StudyInstanceUID" in record.broken["scan.dcm"]
    assert predict_files(bundle, [scan], tmp_path / "other", dicom=False).images == 1
