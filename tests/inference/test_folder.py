"""Predicting files and folders: the table, the pictures beside it, and what happens on the way."""

import csv
import os
import shutil
import threading
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medduet
from medduet import ConfigError, Interrupted, MissingFileError, Predictor, predict_files
from medduet.cli import main
from medduet.inference.exported import BatchPrediction
from medduet.inference.graph import NetworkGraph
from medduet.runs.bundle import save_bundle
from medduet.utils.locks import exclusive


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


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def contents(out: Path) -> tuple[str, list[str]]:
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]
    return (out / "predictions.csv").read_text(), names


def test_a_folder(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = predict_files(bundle, [folder], out, explain=True)
    rows = table(out)
    assert record.images == len(rows) == 6
    assert not record.broken
    assert [(row["file"], row["frame"], row["mask"]) for row in rows] == [
        ("a.png", "1", "masks/a.png"),
        ("b.jpg", "1", "masks/b.png"),
        ("ward b/c.tif", "1", "masks/ward b/c.tif/0001.png"),
        ("ward b/c.tif", "2", "masks/ward b/c.tif/0002.png"),
        ("ward b/d.bmp", "1", "masks/ward b/d.bmp.png"),
        ("ward b/d.png", "1", "masks/ward b/d.png.png"),
    ]
    predictor = Predictor(bundle, explain=True)
    files = dict.fromkeys(row["file"] for row in rows)
    for row, answer in zip(rows, predictor.predict(folder / name for name in files), strict=True):
        assert row["label"] == answer.label
        expected = answer.probabilities["class 1"]
        assert float(row["p_class 1"]) == pytest.approx(expected, abs=1e-5)
        mask = pixels(out / row["mask"])
        assert mask.shape == (int(row["height"]), int(row["width"])) == answer.mask.shape
        assert (mask == answer.mask).mean() > 0.99
        assert int(row["pixels_lesion"]) == mask.sum()
        for kind in ("overlay", "heatmap"):
            assert pixels(out / row[kind]).shape == (*mask.shape, 3)
    mask, overlay = (pixels(out / rows[0][kind]) for kind in ("mask", "overlay"))
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(overlay[mask == 0][:, 0], pixels(folder / "a.png")[mask == 0])
    assert (overlay[mask == 1] != pixels(folder / "a.png")[mask == 1][:, None]).any(axis=1).all()


def test_probabilities_of_mask_classes(bundle: Path, tmp_path: Path) -> None:
    sides = Predictor(bundle).options.sides
    noise = np.random.default_rng(0).integers(0, 255, (2, *sides), np.uint8)
    for name, image in zip("ab", noise, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    predict_files(
        bundle, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", probabilities=True
    )
    for name in "ab":
        maps = np.load(tmp_path / "out" / "probabilities" / f"{name}.npy").astype(float)
        mask = pixels(tmp_path / "out" / "masks" / f"{name}.png")
        assert np.allclose(maps.sum(axis=0), 1, atol=2e-3)
        assert (maps.argmax(axis=0) == mask).mean() > 0.99  # float16 may tie
    with pytest.raises(ConfigError, match=r"no masks are predicted by .*: omit --probabilities"):
        Predictor(bundle, classify_only=True, probabilities=True)


def test_masks_of_images_are_left_out(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (case := tmp_path / "case").mkdir()
    for path in ("images/a_mask.png", "images/gt_9.png", "case/vol-1.png", "case/seg-1.png"):
        shutil.copy(folder / "a.png", tmp_path / path)
    predict_files(bundle, [folder], tmp_path / "out", overlays=False)
    files = {row["file"] for row in table(tmp_path / "out")}
    assert files & {"gt_9.png", "a_mask.png"} == {"gt_9.png"}  # there is no image 9
    assert predict_files(bundle, [case], tmp_path / "of case", overlays=False).images == 1


def test_broken_files_are_told_and_the_rest_goes_on(
    bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "letter.png").write_bytes(b"%PDF-1.7 and so on")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    assert main(["predict", str(bundle), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "failed: letter.png: " in capsys.readouterr().out
    errors = {row["file"]: row["error"] for row in table(tmp_path / "out") if row["error"]}
    assert errors.keys() == {"broken.png", "letter.png", "gone.png"}
    # Mended, it is predicted; nothing else is predicted again.
    shutil.copy(folder / "a.png", folder / "letter.png")
    record = predict_files(bundle, [folder], tmp_path / "out")
    assert (record.skipped, record.images) == (5, 7)


def test_the_same_command_goes_on(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_files(bundle, [folder], whole, batch_size=1)
    stop = threading.Event()
    predict = Predictor.predict_pictures
    asked: list[int] = []

    def counting(self: Predictor, pictures: Any) -> Any:
        asked.extend([len(pictures)] if pictures else [])
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
    assert predict_files(bundle, [folder], out, batch_size=1).skipped == 2
    assert contents(out) == contents(whole)
    asked.clear()
    assert predict_files(bundle, [folder], out, batch_size=1).skipped == 5
    assert not asked
    Image.new("L", (30, 30), 200).save(folder / "a.png")
    assert predict_files(bundle, [folder], out, batch_size=1).skipped == 4
    assert table(out)[0]["height"] == "30"


def test_what_can_not_be_done(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    before = sorted(folder.rglob("*"))
    for sources, where, error, words in (
        ([tmp_path / "nowhere"], out, MissingFileError, "nowhere, which isn't there"),
        ([empty], out, MissingFileError, "found none"),
        ([folder], folder, MissingFileError, "outside "),
        ([], out, ConfigError, "expected files or folders"),
        ([folder], bundle, ConfigError, "is a run or a bundle"),
    ):
        with pytest.raises(error, match=words):
            predict_files(bundle, sources, where)
    assert sorted(folder.rglob("*")) == before


def test_other_answers_and_images_need_another_folder(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    share = np.random.default_rng(0).dirichlet([1, 1, 1], 100)
    calibration = medduet.Calibration.fit(share.argmax(axis=1), share)
    loaded, calibrated = medduet.load_bundle(bundle), tmp_path / "calibrated"
    config = loaded.config.model_copy(update={"calibration": calibration})
    save_bundle(calibrated, loaded.network, config)
    predict_files(bundle, [folder], out)
    shutil.copytree(folder, tmp_path / "copy")
    for network, images, options in (
        (calibrated, folder, {}),
        (bundle, tmp_path / "copy", {}),
        (bundle, folder, {"explain": True}),
    ):
        with pytest.raises(ConfigError, match="of another network, images or options"):
            predict_files(network, [images], out, **options)
    with exclusive(out / ".lock"), pytest.raises(ConfigError, match=r"process .* is writing"):
        predict_files(bundle, [folder], out)
    predict_files(calibrated, [folder], tmp_path / "new", min_confidence=1.0)
    row = table(tmp_path / "new")[0]
    assert row["set"].split(";")[0] == row["label"]
    assert row["abstained"] == "yes"


def test_nothing_is_written_outside(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "here").mkdir(parents=True)
    shutil.copy(folder / "a.png", tmp_path / "project" / "here" / os.fsdecode(b"\xe9.png"))
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(tmp_path / "project")
    for _ in range(2):
        assert predict_files(bundle, [*Path("here").iterdir(), "../images"], "../out").images == 7
    out = tmp_path / "out"
    assert [row["file"] for row in table(out)][:2] == ["project/here/\\xe9.png", "images/a.png"]
    assert sorted(folder.rglob("*")) == before


def test_masks_of_nifti_have_its_geometry(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nib = pytest.importorskip("nibabel")
    monkeypatch.setattr(
        NetworkGraph, "predict", lambda _, image: BatchPrediction(None, image[:, 0] // 255)
    )
    volume = np.random.default_rng(0).integers(0, 2, (32, 21, 5)).astype(np.int16)
    turn = nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag((0.7, 0.8, 2.5))
    whole = nib.Nifti1Image(volume, nib.affines.from_matvec(turn, (-30, 12, 250)))
    (folder := tmp_path / "volumes").mkdir()
    for number, order in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
        image = whole.as_reoriented(np.stack(order, axis=1))
        values, kind = np.asarray(image.dataobj), (nib.Nifti1Image, nib.Nifti2Image)[number % 2]
        image = kind(values[..., None] if number % 3 else values, image.affine)
        image.set_qform(image.affine, code=1)
        image.set_sform(image.affine, code=number % 2)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_slope_inter(*((0.5, -7) if number % 5 else (1, 0)))
        nib.save(image, folder / f"{number}.nii{'.gz' * (number % 2)}")
    predict_files(bundle, [folder], out := tmp_path / "out", overlays=False)
    assert len({row["mask"] for row in table(out)}) == 48
    for path in folder.iterdir():
        image, mask = nib.load(path), nib.load(out / "masks" / f"{path.name.split('.')[0]}.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        assert (np.asarray(mask.dataobj) == (image.dataobj.get_unscaled() == 1)).all()
        assert (mask.affine == image.affine).all()
        for name in ("dim", "pixdim", "sform_code", "qform_code", "xyzt_units"):
            assert (mask.header[name] == image.header[name]).all()
