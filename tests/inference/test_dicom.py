"""Predictions for DICOM images are DICOM that refers to them; read by highdicom and dciodvfy."""

import csv
import gzip
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medduet import ConfigError, Interrupted, predict_files
from medduet.data.listing import list_folder
from medduet.inference.codes import class_code, segment_codes

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
AXIAL = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.7]}
AXIAL |= {"FrameOfReferenceUID": "1.2.3.4", "SliceThickness": 2}


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


def write_dicom(path: Path, frames: int = 1, seed: int = 0, size: int = 48, **changes: Any) -> Path:
    """Write an ultrasound image as a scanner does; what is None in `changes` is missing."""
    from pydicom import uid

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (frames, 6, 6), dtype=np.uint8)
    film = uid.UltrasoundMultiFrameImageStorage
    data = pydicom.Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.SOPClassUID = uid.UltrasoundImageStorage if frames == 1 else film
    for name in ("AccessionNumber", "ReferringPhysicianName", "PatientOrientation"):
        setattr(data, name, "")
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(data, name, uid.generate_uid())
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "1", "A^B", "", "O"
    data.StudyDate, data.StudyTime, data.StudyID = "20250101", "120000", "1"
    data.Modality, data.SeriesNumber, data.InstanceNumber = "US", 1, 1
    data.Manufacturer, data.ImageType = "Scanner", ["ORIGINAL", "PRIMARY"]
    data.Rows, data.Columns, data.SamplesPerPixel = size, 60, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = coarse.repeat(size // 6, axis=1).repeat(10, axis=2).tobytes()
    if frames > 1:
        data.NumberOfFrames, data.FrameTime, data.FrameIncrementPointer = frames, "40", 0x00181063
    for name, value in changes.items():
        setattr(data, name, value)
        if value is None:
            delattr(data, name)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def mask_of(out: Path, row: dict[str, str]) -> np.ndarray:
    with Image.open(out / row["mask"]) as image:
        return np.asarray(image)


def write_series(folder: Path, n: int) -> list[str]:
    """Write a series whose names are in another order than its slices; return UIDs by name."""
    uids = {(7 * k) % n: f"1.2.3.{k}" for k in range(n)}
    for k in range(n):
        own = {"SOPInstanceUID": f"1.2.3.{k}", "SeriesInstanceUID": "1.2.3", "InstanceNumber": k}
        own |= {"StudyInstanceUID": "1.2", "ImagePositionPatient": [1, 2, -1.5 * k]}
        write_dicom(folder / f"{(7 * k) % n}.dcm", seed=k, **own, **AXIAL)
    return [uids[name] for name in range(n)]


@pytest.mark.parametrize("frames", [1, 3])
def test_dicom_gives_dicom(bundle: Path, tmp_path: Path, frames: int) -> None:
    scan = write_dicom(tmp_path / "scan.dcm", frames, PixelSpacing=[0.1, 0.1])
    out = tmp_path / "out"
    assert not predict_files(bundle, [scan], out).broken
    rows = table(out)
    assert rows[0]["dicom"] == "dicom/scan-seg.dcm;dicom/scan-sr.dcm"
    source, written = pydicom.dcmread(scan), highdicom.seg.segread(out / "dicom/scan-seg.dcm")
    assert (written.StudyInstanceUID, written.PatientID) == (source.StudyInstanceUID, "1")
    assert "FrameOfReferenceUID" not in written  # nothing tells how the frames lie in space
    assert "PixelMeasuresSequence" not in written.SharedFunctionalGroupsSequence[0]
    masks = np.stack([mask_of(out, row) for row in rows])
    assert 0 < masks.sum() < masks.size
    np.testing.assert_array_equal(written.pixel_array.reshape(masks.shape), masks)
    report = highdicom.sr.srread(out / "dicom/scan-sr.dcm")
    groups = report.content.get_image_measurement_groups()
    for n, (group, row) in enumerate(zip(groups, rows, strict=True)):
        image, number = group.source_images[0], None if frames == 1 else n + 1
        assert image.referenced_frame_numbers == (number and [number])
        items = written.PerFrameFunctionalGroupsSequence[n].DerivationImageSequence
        assert items[0].SourceImageSequence[0].get("ReferencedFrameNumber") == number
        assert image.referenced_sop_instance_uid == source.SOPInstanceUID
        values = [measurement.value for measurement in group.get_measurements()]
        assert values == [float(row[f"p_class {k}"]) for k in range(3)]


def test_a_series_has_one_segmentation_and_one_report(bundle: Path, tmp_path: Path) -> None:
    scans, first, again = tmp_path / "scans", tmp_path / "first", tmp_path / "again"
    uids, stop = write_series(scans, 5), threading.Event()
    predict_files(bundle, [scans], first, batch_size=1)
    rows = table(first)
    assert {row["dicom"] for row in rows} == {"dicom/1.2.3-seg.dcm;dicom/1.2.3-sr.dcm"}
    written = highdicom.seg.segread(first / "dicom/1.2.3-seg.dcm")
    pixels = written.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(pixels, [mask_of(first, row) for row in rows])
    assert written.get_volume_geometry().spacing == pytest.approx((1.5, 0.5, 0.7))
    # Stopped and run again, and of files that are called otherwise, results are the same.
    for path in sorted(scans.iterdir()):
        path.rename(path.with_name(f"x{9 - int(path.stem)}.dcm"))
    stop.set()
    with pytest.raises(Interrupted):
        predict_files(bundle, [scans], again, batch_size=1, stop=stop)
    for _ in range(2):
        predict_files(bundle, [scans], again, batch_size=1)
    for name in ("1.2.3-seg.dcm", "1.2.3-sr.dcm"):
        assert (first / "dicom" / name).read_bytes() == (again / "dicom" / name).read_bytes()
    # Another file is one more slice, of another size, which has a segmentation of its own.
    write_dicom(scans / "new.dcm", size=42, SeriesInstanceUID="1.2.3", **AXIAL)
    assert len(predict_files(bundle, [scans], again, batch_size=1).notes) == 1
    names = table(again)[-1]["dicom"].split(";")
    assert {pydicom.dcmread(again / name).get("Rows") for name in names} == {48, 42, None}


CHARSETS = {
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "GB18030": "Wang^XiaoDong=王^小东",
    "ISO_IR 192": "Müller^Ανδρέας",
    "ISO_IR 100": "Müller^Rémi",
}


def test_patients_of_all_kinds(bundle: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    absent = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID")
    absent += ("AccessionNumber", "StudyDate", "StudyTime", "SpecificCharacterSet")
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        **{name: ({name: None}, name, "") for name in absent},
        "dots": ({"PatientBirthDate": "1936.01.01"}, "PatientBirthDate", "19360101"),
        "slashes": ({"PatientBirthDate": "1936/1/01"}, "PatientBirthDate", "19360101"),
        "no date": ({"StudyDate": "01.02.36"}, "StudyDate", ""),
        "colons": ({"StudyTime": "12:30:15"}, "StudyTime", "123015"),
        "sex": ({"PatientSex": "female"}, "PatientSex", "F"),
        "age": ({"PatientAge": "77 years"}, "PatientAge", ""),
    }
    for number, (charset, name) in enumerate(CHARSETS.items()):
        change = {"SpecificCharacterSet": charset.split("\\"), "PatientName": name}
        cases[f"name {number}"] = (change, "PatientName", name)
    for case, (changes, *_) in cases.items():
        write_dicom(scans / f"{case}.dcm", **changes)
    assert not predict_files(bundle, [scans], out).broken
    for case, (_, name, expected) in cases.items():
        for kind in ("seg", "sr"):
            data = pydicom.dcmread(out / "dicom" / f"{case}-{kind}.dcm")
            value = "" if name == "SpecificCharacterSet" else str(data.get(name) or "")
            assert value == expected, case
            assert data.SpecificCharacterSet == "ISO_IR 192"
        highdicom.seg.segread(out / "dicom" / f"{case}-seg.dcm")


def test_codes_of_classes_and_segments(bundle: Path, tmp_path: Path) -> None:
    scan, codes, out = write_dicom(tmp_path / "scan.dcm"), tmp_path / "codes.csv", tmp_path / "out"
    classes = [f"class {k},C{k},SCT,Class {k}," for k in range(3)]
    lines = ["name,value,scheme,meaning,category", *classes, "lesion,L1,99LAB,Burn,Tissue"]
    codes.write_text("\n".join(lines))
    predict_files(bundle, [scan], out, codes=codes)
    report = highdicom.sr.srread(out / "dicom/scan-sr.dcm")
    (group,) = report.content.get_image_measurement_groups()
    answer = group.get_qualitative_evaluations()[0].value
    assert answer.value == f"C{table(out)[0]['label'][-1]}"
    schemes = [x.CodingSchemeDesignator for x in report.CodingSchemeIdentificationSequence]
    assert schemes == ["99LAB", "99MEDDUET"]
    segment = highdicom.seg.segread(out / "dicom/scan-seg.dcm").get_segment_description(1)
    assert segment.segmented_property_type.value == "L1"
    assert segment.segmented_property_category.value == "85756007"
    assert segment.tracking_id == "lesion"
    codes.write_text("name,value,scheme,meaning\nclass 9,C0,SCT,Zero")
    with pytest.raises(ConfigError, match="expected one of class 0, class 1, class 2, lesion"):
        predict_files(bundle, [scan], tmp_path / "other", codes=codes)


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("breast_lesions", "49755003", "52988006"),  # morphologically abnormal structure, lesion
        ("Kidney tumour", "49755003", "108369006"),  # neoplasm
        ("liver", "91723000", "10200004"),  # anatomical structure, liver
        ("vessel", "85756007", "59820001"),  # tissue, blood vessel
        ("mask 1", "309825002", None),  # spatial and relational concept
        ("no lesion", "309825002", None),
    ],
)
def test_segments_follow_their_name(name: str, category: str, kind: str | None) -> None:
    codes = segment_codes(name, {})
    assert [code.value for code in codes] == [category, kind or class_code(name, {}).value]
    assert (codes[1].scheme_designator == "SCT") == bool(kind)
    assert class_code(name, {}) != class_code("mask 2", {})


def test_images_are_found_by_content_and_others_left_out(bundle: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scan = write_dicom(scans / "a.dcm")
    for name in ("Doe.Jane", "x.MR", "IM1", "1.2.840", "notes.txt", ".hidden.dcm"):
        shutil.copy(scan, scans / name)
    (scans / "z.dcm.gz").write_bytes(gzip.compress(scan.read_bytes()))
    (scans / "bare").write_bytes(scan.read_bytes()[132:])
    (scans / "README").write_text("not DICOM")
    classes = {"SEG": "66.4", "dose.dcm": "481.2", "r.sr": "88.33", "rt": "481.3"}
    for name, number in classes.items():
        write_dicom(scans / name, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{number}")
    write_dicom(scans / "DICOMDIR", SOPClassUID="1.2.840.10008.1.3.10")
    names = ["1.2.840", "a.dcm", "bare", "Doe.Jane", "IM1", "notes.txt", "x.MR", "z.dcm.gz"]
    listing = list_folder(scans)
    assert sorted((item.name for item in listing.items), key=str.lower) == names
    record = predict_files(bundle, [scans], out)
    rows = table(out)
    assert sorted((row["file"] for row in rows), key=str.lower) == names
    assert not record.broken
    assert listing.notes == record.notes
    assert all(kind in record.notes[0] for kind in ("1 Segmentation", "1 RT Dose", "1 RT Struct"))
    # What is the same image has one segmentation.
    assert len(list((out / "dicom").iterdir())) == 4
    assert len({row["dicom"] for row in rows if row["file"] != "bare"}) == 1


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy of dicom3tools")
def test_dciodvfy_finds_no_errors(bundle: Path, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    scans = tmp_path / "scans"
    write_dicom(scans / "one.dcm", PatientIdentityRemoved="YES", PixelSpacing=[1, 1])
    write_dicom(scans / "film.dcm", 3, PixelSpacing=[1, 1], FrameOfReferenceUID="1.2.3")
    write_series(scans / "series", 3)
    for name in ("693_J2KI", "SC_rgb_rle_2frame", "MR_small_RLE", "examples_ybr_color"):
        shutil.copy(get_testdata_file(f"{name}.dcm"), scans)
    assert not predict_files(bundle, [scans], tmp_path / "out").broken
    written = sorted((tmp_path / "out" / "dicom").rglob("*-*.dcm"))
    assert len(written) == 14
    for path in written:
        words = ["dciodvfy", str(path)]
        checked = subprocess.run(words, capture_output=True, text=True, check=False)
        assert not [line for line in checked.stderr.splitlines() if line.startswith("Error")]
        if path.name.endswith("-seg.dcm"):
            assert highdicom.seg.segread(path).pixel_array.any()


def test_dicom_without_a_study_is_told(bundle: Path, tmp_path: Path) -> None:
    scan = write_dicom(tmp_path / "scan.dcm", StudyInstanceUID="")
    record = predict_files(bundle, [scan], tmp_path / "out")
    assert "expected StudyInstanceUID" in record.broken["scan.dcm"]
    assert predict_files(bundle, [scan], tmp_path / "other", dicom=False).images == 1
