"""Predicting files and folders: the table, the pictures beside it, and what happens on the way."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import medduet
from medduet import ConfigError, Interrupted, MissingFileError, Predictor, predict_files
from medduet.cli import main
from medduet.runs.bundle import save_bundle
from medduet.utils.locks import exclusive
from medduet.utils.palette import mask_color

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = medduet.create_model(
        "vovunet_var", in_channels=1, num_classes=2, dense_channels=1, width=4
    ).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(8, 1, 32, 32))
    network.eval()
    with torch.no_grad():  # half of a picture is lesion
        dense = network(
            torch.rand(8, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
        ).dense
        network.dense_head.bias -= dense.median()
    path = tmp_path_factory.mktemp("network") / "bundle"
    config = {
        "class_names": ["benign", "malignant"],
        "mask_names": ["background", "lesion"],
        "multi_label": False,
        "layout": {"mask_classes": 2, "image_channels": 0},
        "preprocessing": {"size": [32, 32], "channels": 1, "fit": "pad", "window": None},
    }
    save_bundle(path, network, config)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write pictures of several kinds in several folders."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    (root / "ward b").mkdir(parents=True)

    def picture(width: int, height: int) -> Image.Image:
        small = Image.fromarray(rng.integers(0, 255, (6, 9), dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    picture(75, 50).save(root / "a.png")
    picture(40, 90).convert("RGB").save(root / "b.jpg")
    picture(64, 64).save(root / "ward b" / "c.tif", save_all=True, append_images=[picture(64, 64)])
    picture(50, 50).save(root / "ward b" / "d.png")
    picture(50, 50).save(root / "ward b" / "d.bmp")
    return root


def table(out: Path) -> Rows:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def names(out: Path) -> list[str]:
    return [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]


def test_a_folder(bundle: Path, folder: Path, tmp_path: Path) -> None:
    record = predict_files(bundle, [folder], tmp_path / "out", explain=True)
    rows = table(tmp_path / "out")
    assert record.images == len(rows) == 6
    assert not record.broken
    assert [(row["file"], row["frame"]) for row in rows] == [
        ("a.png", "1"),
        ("b.jpg", "1"),
        ("ward b/c.tif", "1"),
        ("ward b/c.tif", "2"),
        ("ward b/d.bmp", "1"),
        ("ward b/d.png", "1"),
    ]
    assert [row["mask"] for row in rows] == [
        "masks/a.png",
        "masks/b.png",
        "masks/ward b/c.tif/0001.png",
        "masks/ward b/c.tif/0002.png",
        "masks/ward b/d.bmp.png",
        "masks/ward b/d.png.png",
    ]
    predictor = Predictor(bundle, explain=True)
    answers = list(
        predictor.predict(folder / name for name in dict.fromkeys(r["file"] for r in rows))
    )
    for row, answer in zip(rows, answers, strict=True):
        assert row["label"] == answer.label
        assert float(row["p_malignant"]) == pytest.approx(
            answer.probabilities["malignant"], abs=1e-5
        )
        mask = pixels(tmp_path / "out" / row["mask"])
        assert answer.mask is not None
        assert mask.shape == (int(row["height"]), int(row["width"])) == answer.mask.shape
        assert (mask == answer.mask).mean() > 0.99
        assert int(row["pixels_lesion"]) == mask.sum()
        for kind in ("overlay", "heatmap"):
            assert pixels(tmp_path / "out" / row[kind]).shape == (*mask.shape, 3)
    first = pixels(tmp_path / "out" / rows[0]["overlay"]).astype(int)
    mask = pixels(tmp_path / "out" / rows[0]["mask"])
    assert 0 < mask.sum() < mask.size
    picture = pixels(folder / "a.png").astype(int)
    np.testing.assert_array_equal(first[mask == 0], np.repeat(picture[mask == 0][:, None], 3, 1))
    nearer = np.abs(first - mask_color(1)).sum(2) <= np.abs(picture[..., None] - mask_color(1)).sum(
        2
    )
    assert nearer[mask == 1].all()


def test_broken_files_are_told_and_the_rest_goes_on(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "letter.png").write_bytes(b"%PDF-1.7 and so on")
    assert main(["predict", str(bundle), str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "6 images: " in said
    assert "failed: letter.png: " in said
    errors = {row["file"]: row["error"] for row in table(tmp_path / "out") if row["error"]}
    assert errors.keys() == {"broken.png", "letter.png"}
    assert errors["letter.png"].startswith("expected PNG, JPEG")
    # Mended, it is predicted; nothing else is predicted again.
    shutil.copy(folder / "a.png", folder / "letter.png")
    record = predict_files(bundle, [folder], tmp_path / "out")
    assert record.skipped == 5
    assert record.images == 7
    assert record.broken.keys() == {"broken.png"}


def test_the_same_command_goes_on(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_files(bundle, [folder], whole, batch_size=1)
    stop = threading.Event()
    predict = Predictor.predict_pictures
    asked: list[int] = []

    def counting(self: Predictor, pictures: Any) -> Any:
        asked.append(len(pictures))
        if len(asked) == 2:
            stop.set()
        return predict(self, pictures)

    monkeypatch.setattr(Predictor, "predict_pictures", counting)
    with pytest.raises(Interrupted, match="2 of 5 files are done"):
        predict_files(bundle, [folder], out, batch_size=1, stop=stop)
    assert [row["file"] for row in table(out)] == ["a.png", "b.jpg"]
    # As after a kill in the middle of a line.
    with (out / "done.jsonl").open("a") as file:
        file.write('{"file": "ward b/d')
    record = predict_files(bundle, [folder], out, batch_size=1)
    assert record.skipped == 2
    assert (out / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
    assert names(out) == names(whole)
    asked.clear()
    assert predict_files(bundle, [folder], out, batch_size=1).skipped == 5
    assert not asked
    Image.new("L", (30, 30), 200).save(folder / "a.png")
    assert predict_files(bundle, [folder], out, batch_size=1).skipped == 4
    assert table(out)[0]["height"] == "30"


def test_killed_at_any_time_it_goes_on(
    bundle: Path, folder: Path, tmp_path: Path, python_command: list[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_files(bundle, [folder], whole, batch_size=1)
    code = f"""
import os, medduet.inference.folder as p
written, rows = [0], p.ResultWriter._save
def save(self, kind, stem, content):
    written[0] += 1
    if written[0] == 4:
        os.kill(os.getpid(), 9)
    return rows(self, kind, stem, content)
p.ResultWriter._save = save
p.predict_files({str(bundle)!r}, [{str(folder)!r}], {str(out)!r}, batch_size=1)
"""
    killed = subprocess.run([*python_command, "-c", code], timeout=200, check=False)
    assert killed.returncode != 0
    assert predict_files(bundle, [folder], out, batch_size=1).skipped == 1
    assert (out / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
    assert names(out) == names(whole)


def test_what_can_not_be_done(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(bundle), str(folder)]) == 2
    assert "missing: --out" in capsys.readouterr().err
    with pytest.raises(MissingFileError, match=r"there is no .*nowhere"):
        predict_files(bundle, [tmp_path / "nowhere"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="there are none"):
        predict_files(bundle, [tmp_path / "empty"], out)
    with pytest.raises(ConfigError, match="expected files or folders"):
        predict_files(bundle, [], out)
    predict_files(bundle, [folder / "a.png"], out)
    with pytest.raises(ConfigError, match="predictions of another --explain"):
        predict_files(bundle, [folder / "a.png"], out, explain=True)
    with (
        exclusive(out / ".lock"),
        pytest.raises(ConfigError, match=r"process .* writes"),
    ):
        predict_files(bundle, [folder / "a.png"], out)


def test_answers_do_not_go_among_the_images_or_into_a_run(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is a run or a bundle"):
        predict_files(bundle, [folder], bundle)
    before = sorted(folder.rglob("*"))
    with pytest.raises(MissingFileError, match="outside of --out"):
        predict_files(bundle, [folder], folder)
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_written_outside(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "here").mkdir(parents=True)
    shutil.copy(folder / "a.png", tmp_path / "project" / "here" / "1.png")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path / "project")
    for _ in range(2):
        record = predict_files(bundle, ["here", "../images"], "../out")
        assert record.images == 7
    out = tmp_path / "out"
    assert [row["file"] for row in table(out)][:2] == ["project/here/1.png", "images/a.png"]
    assert all((out / row["mask"]).is_file() for row in table(out))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert predict_files(bundle, ["../images"], "out").images == 6


def test_other_answers_and_images_need_another_folder(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    share = np.random.default_rng(0).dirichlet([1, 1], 100)
    calibration = medduet.Calibration.fit(share.argmax(axis=1), share)
    loaded = medduet.load_bundle(bundle)
    config = loaded.config.model_copy(update={"calibration": calibration})
    save_bundle(tmp_path / "calibrated", loaded.network, config)
    predict_files(bundle, [folder], tmp_path / "out")
    with pytest.raises(ConfigError, match="another network, or another calibration"):
        predict_files(tmp_path / "calibrated", [folder], tmp_path / "out")
    predict_files(tmp_path / "calibrated", [folder], tmp_path / "new", min_confidence=0.99)
    row = table(tmp_path / "new")[0]
    assert row["set"].split(";")[0] == row["label"]
    assert row["abstained"] == "yes"
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"predictions of images below .*images: give another"):
        predict_files(bundle, [tmp_path / "copy"], tmp_path / "out")


def test_names_that_are_no_text_and_files_that_are_gone(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    odd = folder / os.fsdecode(b"caf\xe9.png")
    shutil.copy(folder / "a.png", odd)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (tmp_path / "list").mkdir()
    record = predict_files(bundle, [folder / "a.png", odd], tmp_path / "out")
    assert record.images == 2
    assert [row["file"] for row in table(tmp_path / "out")] == ["a.png", "caf\\xe9.png"]
    odd.unlink()
    record = predict_files(bundle, [folder], tmp_path / "more")
    assert record.images == 6
    assert record.broken.keys() == {"gone.png"}


def write_dicom(path: Path, frames: int = 1) -> None:
    """Write an ultrasound image as a scanner does."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        UltrasoundImageStorage,
        UltrasoundMultiFrameImageStorage,
        generate_uid,
    )

    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (frames, 48, 60), dtype=np.uint8)
    data = pydicom.Dataset()
    data.SOPClassUID = UltrasoundImageStorage if frames == 1 else UltrasoundMultiFrameImageStorage
    data.SOPInstanceUID, data.StudyInstanceUID = generate_uid(), generate_uid()
    data.SeriesInstanceUID = generate_uid()
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "1", "A^B", "", "O"
    data.StudyDate, data.StudyTime, data.StudyID = "20250101", "120000", "1"
    data.AccessionNumber, data.ReferringPhysicianName = "", ""
    data.Modality, data.SeriesNumber, data.InstanceNumber = "US", 1, 1
    data.Manufacturer, data.ImageType = "Scanner", ["ORIGINAL", "PRIMARY"]
    data.PatientOrientation = ""
    data.Rows, data.Columns = 48, 60
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    if frames > 1:
        data.NumberOfFrames, data.FrameTime = frames, "40"
        data.FrameIncrementPointer = 0x00181063
    data.PixelData = values.tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("frames", [1, 3])
def test_dicom_gives_dicom(bundle: Path, tmp_path: Path, frames: int) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    write_dicom(tmp_path / "scan.dcm", frames)
    record = predict_files(bundle, [tmp_path / "scan.dcm"], tmp_path / "out")
    assert not record.broken
    rows = table(tmp_path / "out")
    assert len(rows) == frames
    source = pydicom.dcmread(tmp_path / "scan.dcm")
    # Nothing tells how the frames of the film lie in space, so each has a segmentation.
    segmentations = [f"scan.dcm/{n:04}-seg.dcm" for n in range(1, frames + 1)]
    if frames == 1:
        segmentations = ["scan-seg.dcm"]
    assert rows[0]["dicom"].split(";") == [f"dicom/{n}" for n in (*segmentations, "scan-sr.dcm")]
    for number, (name, row) in enumerate(zip(segmentations, rows, strict=True), start=1):
        written = pydicom.dcmread(tmp_path / "out" / "dicom" / name)
        mask = pixels(tmp_path / "out" / row["mask"])
        assert 0 < mask.sum() < mask.size
        np.testing.assert_array_equal(written.pixel_array.reshape(48, 60), mask)
        assert written.SegmentSequence[0].SegmentLabel == "lesion"
        assert written.StudyInstanceUID == source.StudyInstanceUID
        assert written.PatientID == source.PatientID
        group = written.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        referenced = group.SourceImageSequence[0]
        assert referenced.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert referenced.get("ReferencedFrameNumber") == (number if frames > 1 else None)
    report = pydicom.dcmread(tmp_path / "out" / "dicom" / "scan-sr.dcm")
    assert report.StudyInstanceUID == source.StudyInstanceUID
    text = str(report)
    assert text.count("Predicted class") == frames
    assert text.count("Probability of malignant") == frames
    assert f"{float(rows[0]['p_malignant']):g}"[:6] in text
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy, which Debian's dicom3tools has")
    for name in (*segmentations, "scan-sr.dcm"):
        checked = subprocess.run(
            ["dciodvfy", str(tmp_path / "out" / "dicom" / name)], capture_output=True, text=True
        )
        errors = [line for line in checked.stderr.splitlines() if line.startswith("Error")]
        assert not errors


def test_no_two_results_share_a_name(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    (tmp_path / "images" / "scan").mkdir(parents=True)
    for name, frames in (("scan.dcm", 2), ("scan-0001.dcm", 1), ("scan/0001.dcm", 1)):
        write_dicom(tmp_path / "images" / name, frames)
    predict_files(bundle, [tmp_path / "images"], tmp_path / "out")
    paths = [path for row in table(tmp_path / "out") for path in row["dicom"].split(";") if path]
    assert len(paths) == len(set(paths)) == 3 + 2 + 2
    assert all((tmp_path / "out" / path).is_file() for path in paths)


def test_dicom_without_a_study_is_told(bundle: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    write_dicom(tmp_path / "scan.dcm")
    data = pydicom.dcmread(tmp_path / "scan.dcm")
    del data.StudyInstanceUID
    data.save_as(tmp_path / "scan.dcm")
    record = predict_files(bundle, [tmp_path / "scan.dcm"], tmp_path / "out")
    assert "expected StudyInstanceUID" in record.broken["scan.dcm"]
    assert record.images == 1
    assert (
        predict_files(bundle, [tmp_path / "scan.dcm"], tmp_path / "other", dicom=False).images == 1
    )
