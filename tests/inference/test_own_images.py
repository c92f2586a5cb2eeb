"""Image files of one's own, from the folder to the finished run, beside the same set as an .npz."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medduet
from medduet import DataConfig, ImageSet, RunConfig, open_images
from medduet.cli import main
from medduet.data.imageset import SPLITS


def _rows(images: ImageSet) -> list[tuple[str, np.ndarray, np.ndarray, str, str]]:
    """Return name, image, mask, class and split of each image."""
    pool = images.pool()
    classes = [images.class_names[label] for label in pool.labels]
    names = [f"{kind} ({number + 1})" for number, kind in enumerate(classes)]
    splits = [text.split("/")[0] for text in pool.ids.tolist()]
    return list(zip(names, pool.images[:], pool.masks[:], classes, splits, strict=True))


def write_png(images: ImageSet, root: Path) -> Path:
    """Write the set in the naming of BUSI; every other mask as the union of two."""
    for number, (name, pixels, mask, kind, split) in enumerate(_rows(images)):
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        white = (mask > 0).astype(np.uint8) * 255
        upper = (white * (np.arange(len(white))[:, None] < len(white) // 2)).astype(np.uint8)
        parts = {"": white} if number % 2 else {"": upper, "_1": white - upper}
        for end, part in parts.items():
            Image.fromarray(part).save(folder / f"{name}_mask{end}.png")
    return root


def write_dicom(images: ImageSet, root: Path, encode: Callable[[np.ndarray], bytes]) -> Path:
    """Write the set as DICOM files in several transfer syntaxes, with a table of masks.

    `encode` makes a lossless JPEG.
    """
    uid = pytest.importorskip("pydicom.uid")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    syntaxes = [
        (uid.ExplicitVRLittleEndian, None),
        (uid.ImplicitVRLittleEndian, None),
        (uid.DeflatedExplicitVRLittleEndian, None),
        (uid.ExplicitVRLittleEndian, uid.RLELossless),
        (uid.ExplicitVRLittleEndian, uid.JPEGLSLossless),
        (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless),
        (uid.JPEGLosslessSV1, None),
    ]
    root.mkdir()
    table = ["path,label,mask,split"]
    for number, (name, pixels, mask, kind, split) in enumerate(_rows(images)):
        stored, packed = syntaxes[number % len(syntaxes)]
        inverted = number % 4 == 3
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = stored
        data.SOPClassUID, data.SOPInstanceUID = uid.UltrasoundImageStorage, uid.generate_uid()
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 8, 8, 7
        data.PixelRepresentation = 0
        data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        values = 255 - pixels if inverted else pixels
        data.PixelData = encapsulate([encode(values)]) if stored.is_encapsulated else bytes(values)
        data["PixelData"].VR = "OB"
        if packed is not None:
            data.compress(packed, generate_instance_uid=False)
        data.save_as(root / f"{name}.dcm", enforce_file_format=True)
        Image.fromarray(mask).save(root / f"{name}.png")
        table.append(f"{name}.dcm,{kind},{name}.png,{split}")
    (root / "table.csv").write_text("\n".join(table))
    return root / "table.csv"


@pytest.fixture(scope="module")
def original() -> ImageSet:
    return open_images("phantom", size=32, count=60)


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_files_give_the_batches_of_the_npz(
    kind: str,
    original: ImageSet,
    tmp_path: Path,
    lossless_jpeg: Callable[[np.ndarray], bytes],
) -> None:
    root = tmp_path / "own"
    is_png = kind == "png"
    path = write_png(original, root) if is_png else write_dicom(original, root, lossless_jpeg)
    data = DataConfig(name=str(path), split="given")
    images = open_images(data)
    assert images.size == original.size
    for name in SPLITS:
        ours, theirs = images.split(name), original.split(name)
        # Files are ordered by name, classes too; the numbers in the names tell the old order.
        number = [int(text.rpartition("(")[2].partition(")")[0]) for text in ours.ids.tolist()]
        one, two = ours.batch(np.argsort(number)), theirs.batch(np.arange(len(theirs)))
        assert one.image.equal(two.image)
        assert one.mask.equal((two.mask > 0).long() if is_png else two.mask)
        assert one.has_mask.all()
        names = [images.class_names[label] for label in one.label]
        assert names == [original.class_names[label] for label in two.label]
    # And the command line trains on it.
    words = f"train segment --data {data.name} --model.width 2 --epochs 1"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    table = (tmp_path / "run" / "predictions" / "test.csv").read_text().splitlines()
    assert len(table) == len(original.test) + 1
    assert table[1].split(",")[1].endswith(".png" if is_png else ".dcm")
    assert len((tmp_path / "run" / "split.csv").read_text().splitlines()) == 1 + len(images.pool())


@pytest.mark.slow
def test_a_folder_with_some_of_the_classes_is_evaluated_by_name(
    original: ImageSet, tmp_path: Path, make_config: Callable[..., RunConfig]
) -> None:
    data = {"name": str(write_png(original, tmp_path / "all")), "count": None, "size": 32}
    medduet.train(make_config(tmp_path / "run", data=data))
    some = tmp_path / "some"
    for split in SPLITS:
        for kind in ("smooth", "ring"):
            target = some / kind
            target.mkdir(parents=True, exist_ok=True)
            for path in (tmp_path / "all" / split / kind).iterdir():
                path.rename(target / path.name)
    metrics = medduet.evaluate(tmp_path / "run", data=DataConfig(name=str(some)), split="all")
    assert metrics["all"]["n"] == 30
    assert metrics["data"]["class_names"] == ["normal", "ring", "smooth", "spiculated"]
    header, *rows = csv.reader(
        (tmp_path / "run/evaluations/some-all/predictions/all.csv").read_text().splitlines()
    )
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert metrics["data"]["class_names"][int(cells["label"])] == cells["image"].split("/")[0]


def test_mistakes_of_a_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words, parts in (
        (f"--data {tmp_path / 'empty'}", ["expected images"]),
        (f"--data {tmp_path / 'none.csv'}", ["expected a table", "none.csv"]),
        ("--data phantom --data.folds 5 --data.fold 5", ["fold", "below", "5"]),
        ("--data phantom --data.split halves", ["split"]),
        ("--data phantom --data.skip-broken", ["folder or table of images"]),
    ):
        assert main(["train", "segment", *words.split()]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert all(part in text for part in parts), text
