"""Predicting whole folders: a table, masks and pictures, and nothing twice."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from medduet.config import Device
from medduet.data.cache import ProgressFactory, counted
from medduet.data.folders import images_and_masks
from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import Picture, read_pictures
from medduet.data.reading.names import stem_of
from medduet.data.reading.nifti import HEADER_SIZE
from medduet.data.reading.opening import is_dicom
from medduet.data.workers import map_files
from medduet.errors import ConfigError, DataError, Interrupted, MedDuetError, MissingFileError
from medduet.inference.overlays import heat_png, mask_png, overlay_png
from medduet.inference.predictor import Answer, Predictor
from medduet.utils.files import (
    atomic_path,
    finite,
    storage_errors,
    sweep,
    write_json,
    write_text,
)
from medduet.utils.locks import exclusive, holder
from medduet.utils.parsing import as_text, read_object

TABLE, JOURNAL, SETTINGS = "predictions.csv", "done.jsonl", "settings.json"
_BYTES_TOGETHER = 1 << 28
_ANSWERS = (
    "network",
    "class_names",
    "mask_names",
    "multi_label",
    "layout",
    "preprocessing",
    "calibration",
    "ood",
)
"""What of ``config.json`` decides what is answered."""
WARNING = "unlike the training images"
_FEW = 64
"""Files that one process has read before a second one has started."""


class _Entry(BaseModel):
    """A line of the journal, which may be damaged."""

    model_config = ConfigDict(strict=True, extra="forbid")
    file: str
    stamp: list[int]
    rows: list[dict[str, str | int | float | None]]


@dataclass(frozen=True)
class PredictRecord:
    """Predictions in a folder.

    Attributes:
        path: the folder.
        images: number of images in the table, those that can't be read left out.
        broken: what can't be read or written, and why.
        skipped: files that were done already.
        unfamiliar: number of images that are unlike those of the training.
    """

    path: Path
    images: int
    broken: dict[str, str]
    skipped: int
    unfamiliar: int = 0


@dataclass(frozen=True)
class _File:
    """A file to predict: what it is called in the table, and its outputs up to their ending."""

    path: Path
    name: str
    stem: str


def predict_files(
    path: str | Path,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    classify_only: bool = False,
    explain: bool = False,
    coverage: float | None = None,
    abstain_below: float | None = None,
    accuracy: float | None = None,
    overlays: bool = True,
    dicom: bool = True,
    device: Device = "auto",
    batch_size: int | None = None,
    progress: ProgressFactory | None = None,
    stop: threading.Event | None = None,
) -> PredictRecord:
    """Predict files and the images in folders, and write what comes out to the folder `out`.

    ``predictions.csv`` has a row for each frame; masks (PNG, values are the classes), overlays,
    heat maps, and DICOM-SEG and structured reports of DICOM files lie in folders beside it, masks
    at the size of the image. The same call again goes on where it was stopped, and predicts
    what was changed or could not be read.

    Args:
        path: a bundle, a run, or an exported network, see `medduet.Predictor`.
        sources: files, and folders with all that is in them but masks.
        out: the folder to write.
        classify_only: ask for classes alone; the decoder is not run.
        explain: also write what spoke for the class (Grad-CAM).
        coverage: share of images whose true class is to be in the prediction set; ``None`` for
            0.9 if the network is calibrated.
        abstain_below: confidence below which the network abstains.
        accuracy: instead, the accuracy that answers without abstention reached on the images
            that the network was calibrated on.
        overlays: whether to write the image with its mask over it.
        dicom: whether to write results in DICOM for DICOM files.
        device: see `medduet.TrainConfig`.
        batch_size: images that are computed together; ``None`` for as many as are worth it.
        progress: draws how many bytes of the files are done.
        stop: set it to stop after the current batch.

    Raises:
        ConfigError: options that the network can't fulfil, or `out` has those of another one.
        Interrupted: `stop` was set.
        MissingFileError: there is no network, or nothing at one of `sources`.

    Example:
        >>> import tempfile, medduet, numpy as np
        >>> from PIL import Image
        >>> from medduet.runs.bundle import save_bundle
        >>> folder = Path(tempfile.mkdtemp())
        >>> network = medduet.create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> save_bundle(folder / "bundle", network, {
        ...     "multi_label": False, "class_names": ["a", "b"],
        ...     "layout": {"mask_classes": 0, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1}})
        >>> Image.new("L", (50, 40)).save(folder / "scan.png")
        >>> record = predict_files(folder / "bundle", [folder / "scan.png"], folder / "out")
        >>> (record.path / "predictions.csv").read_text().splitlines()[0]
        'file,frame,height,width,label,p_a,p_b,error'
    """
    out = _absolute(Path(out))
    if (out / "config.json").is_file():
        raise ConfigError(f"{out} is a run or a bundle: give another --out")
    root, files = _listed([_absolute(Path(source)) for source in sources], out)
    options: dict[str, Any] = {
        "classify_only": classify_only,
        "explain": explain,
        "coverage": coverage,
        "abstain_below": abstain_below,
        "accuracy": accuracy,
    }
    predictor = Predictor(path, **options, device=device, batch_size=batch_size)
    settings = options | {
        "overlays": overlays,
        "dicom": dicom,
        "network": _identity(predictor),
        "images": as_text(root),
    }
    with exclusive(out / ".lock") as alone:
        if not alone:
            raise ConfigError(
                f"{holder(out / '.lock')} writes to {out}: wait for it, or give another --out"
            )
        sweep(out)
        _check_settings(out / SETTINGS, settings)
        done = _still_done(files, _read_journal(out / JOURNAL))
        waiting = [file for file in files if file.name not in done]
        writer = _Writer(out, predictor, overlays=overlays, dicom=dicom)
        stop = stop or threading.Event()
        try:
            _predict(predictor, waiting, writer, done, progress, stop)
        finally:
            rows = [row for file in files if file.name in done for row in done[file.name]["rows"]]
            writer.write_table(rows)
    if stop.is_set() and len(done) < len(files):
        raise Interrupted(
            f"stopped; {len(done)} of {len(files)} files are done: the same command goes on"
        )
    broken = {row["file"]: row["error"] for row in rows if row.get("error")}
    images = sum("height" in row for row in rows)
    unfamiliar = sum(bool(row.get("warning")) for row in rows)
    return PredictRecord(out, images, broken, len(files) - len(waiting), unfamiliar)


def _listed(sources: Sequence[Path], out: Path) -> tuple[Path, list[_File]]:
    """Return the folder that all sources share, and the files, named by their paths below it."""
    if not sources:
        raise ConfigError("expected files or folders: medduet predict BUNDLE PATH... --out DIR")
    paths: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            found, _, faults = images_and_masks(source)
            if faults:
                raise DataError(f"{source}: {faults[0][0]}: {faults[0][1]}")
            inside = [each for each in found if out not in each.parents]
            if not inside and found:
                raise ConfigError(
                    f"the images of {source} lie in --out, where the answers go: give another --out"
                )
            if not inside:
                raise MissingFileError(f"expected images in {source}, but there are none")
            paths |= dict.fromkeys(inside)
        elif source.is_file():
            paths[source] = None
        else:
            raise MissingFileError(f"expected an image or a folder, but there is no {source}")
    root = Path(os.path.commonpath([each if each.is_dir() else each.parent for each in sources]))
    called: dict[Path, list[str]] = defaultdict(list)
    for path in paths:
        called[path.parent].append(stem_of(path))
    # As the image is called, so that images and masks are a set; unless two are called so.
    alike = {folder for folder, stems in called.items() if len(set(stems)) < len(stems)}
    files = []
    for path in paths:
        name = path.relative_to(root)
        stem = name if path.parent in alike else name.with_name(stem_of(path))
        files.append(_File(path, as_text(name), as_text(stem)))
    return root, files


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.expanduser().absolute()))


def _identity(predictor: Predictor) -> dict[str, Any]:
    """Return what tells one network from others that would answer otherwise."""
    config = predictor.config
    weights = config.get("export", {}).get("sha256") or config.get("weights_sha256")
    rest = json.dumps({name: config.get(name) for name in _ANSWERS}, sort_keys=True)
    return {"weights": weights, "rest": hashlib.sha256(rest.encode()).hexdigest()}


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.is_file():
        write_json(path, settings)
        return
    found = read_object(path)
    if found == settings:
        return
    other = next((key for key in settings if found.get(key) != settings[key]), "network")
    what = {
        "network": "another network, or another calibration of it",
        "images": f"images below {found.get('images')}",
    }.get(other, f"another --{other.replace('_', '-')}")
    raise ConfigError(f"{path.parent} has predictions of {what}: give another --out")


def _stamp(path: Path) -> list[int]:
    """Return what tells one state of a file from another; nothing if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Return what was said of each file; what a kill left half written is forgotten."""
    done: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return done
    whole = 0
    with path.open("rb") as file:
        for line in file:
            try:
                entry = _Entry.model_validate_json(line if line.endswith(b"\n") else b"")
            except ValidationError:
                break
            whole += len(line)
            done[entry.file] = entry.model_dump()
    with path.open("rb+") as file:
        file.truncate(whole)
    return done


def _still_done(
    files: Sequence[_File], journal: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the entries of files as they are now; what went wrong is tried once more."""
    return {
        file.name: entry
        for file in files
        if (entry := journal.get(file.name)) is not None
        and entry["stamp"] == _stamp(file.path)
        and not any(row.get("error") for row in entry["rows"])
    }


def _pictures(path: Path, options: ReadOptions) -> list[Picture]:
    return list(read_pictures(path, options))


def _predict(
    predictor: Predictor,
    files: Sequence[_File],
    writer: _Writer,
    done: dict[str, dict[str, Any]],
    progress: ProgressFactory | None,
    stop: threading.Event,
) -> None:
    """Predict `files` and note each when all of it is written."""
    if not files:
        return
    stamps = [_stamp(file.path) for file in files]
    read = map_files(
        partial(_pictures, options=predictor.options),
        [file.path for file in files],
        processes=None if len(files) > _FEW else 1,
    )
    total = sum(size for size, _ in stamps)
    with (
        counted(progress, "predict", total) as count,
        storage_errors(writer.out / JOURNAL),
        (writer.out / JOURNAL).open("a", encoding="utf-8") as journal,
    ):
        for number, said in _answered(predictor, read):
            file = files[number]
            rows = writer.rows(file, said)
            entry = {"file": file.name, "stamp": stamps[number], "rows": finite(rows)}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            done[file.name] = entry
            count(stamps[number][0])
            if stop.is_set():
                break


def _answered(
    predictor: Predictor, read: Iterator[tuple[int, list[Picture] | str]]
) -> Iterator[tuple[int, list[Answer] | str]]:
    """Give the answers file by file; frames of several files are computed together."""
    for some in _together(read, predictor.batch_size):
        pictures = [each for _, found in some if not isinstance(found, str) for each in found]
        answers = iter(predictor.answer(pictures))
        for number, found in some:
            if isinstance(found, str):
                yield number, found
            else:
                yield number, list(islice(answers, len(found)))


def _together(
    read: Iterator[tuple[int, list[Picture] | str]], frames: int
) -> Iterator[list[tuple[int, list[Picture] | str]]]:
    """Give files in groups of so many frames, or fewer where they are large."""
    group: list[tuple[int, list[Picture] | str]] = []
    count = size = 0
    for number, found in read:
        group.append((number, found))
        if not isinstance(found, str):
            count += len(found)
            size += sum(picture.whole.nbytes for picture in found)
        if count >= frames or size >= _BYTES_TOGETHER:
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


class _Writer:
    """Writes what is said: the table, and the files beside it."""

    def __init__(self, out: Path, predictor: Predictor, *, overlays: bool, dicom: bool) -> None:
        self.out, self.predictor, self.overlays, self.dicom = out, predictor, overlays, dicom
        self.abstains = predictor.abstain_below is not None

    def write_table(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the table of all rows, with the columns that this network fills."""
        classes, masks = self.predictor.class_names, self.predictor.mask_names[1:]
        columns = ["file", "frame", "height", "width"]
        if classes:
            columns += ["label", *(f"p_{name}" for name in classes)]
            columns += ["set"] if self.predictor.calibration is not None else []
            columns += ["abstained"] if self.abstains else []
        if self.predictor.familiarity is not None:
            columns += ["unfamiliar", "warning"]
        there = {name for row in rows for name in row}
        more = (*(f"pixels_{name}" for name in masks), "mask", "overlay", "heat", "dicom")
        columns += [name for name in more if name in there]
        text = io.StringIO()
        table = csv.DictWriter(text, [*columns, "error"], restval="", lineterminator="\n")
        table.extrasaction = "ignore"  # what only a damaged journal has
        table.writeheader()
        table.writerows(rows)
        write_text(self.out / TABLE, text.getvalue())

    def rows(self, file: _File, said: list[Answer] | str) -> list[dict[str, Any]]:
        """Write the pictures of a file and return its rows."""
        if isinstance(said, str):
            return [{"file": file.name, "error": said.removeprefix(f"{file.path}: ")}]
        rows = []
        for number, answer in enumerate(said, start=1):
            # No other image can be called so: there is no folder of the name of a file.
            stem = file.stem if len(said) == 1 else f"{file.name}/{number:04}"
            rows.append({"file": file.name, "frame": number} | self._row(answer, stem))
        if self.dicom and _is_dicom(file.path):
            rows[0] |= self._write_dicom(file, said)
        return rows

    def _row(self, answer: Answer, stem: str) -> dict[str, Any]:
        height, width = answer.image.shape[:2]
        row: dict[str, Any] = {"height": height, "width": width}
        if answer.label is not None:
            row["label"] = answer.label
            row |= {f"p_{name}": round(p, 6) for name, p in answer.probabilities.items()}
            if answer.prediction_set is not None:
                row["set"] = ";".join(answer.prediction_set)
            if self.abstains:
                row["abstained"] = "yes" if answer.abstained else "no"
        if answer.unfamiliar is not None:
            row["unfamiliar"] = round(answer.unfamiliar, 6)
            row["warning"] = WARNING if answer.is_unfamiliar else ""
        if answer.mask is not None:
            for number, name in enumerate(self.predictor.mask_names[1:], start=1):
                row[f"pixels_{name}"] = int((answer.mask == number).sum())
            row["mask"] = self._save("masks", stem, mask_png(answer.mask))
            if self.overlays:
                row["overlay"] = self._save(
                    "overlays", stem, overlay_png(answer.image, answer.mask)
                )
        if answer.heat is not None:
            row["heat"] = self._save("heat", stem, heat_png(answer.image, answer.heat))
        return row

    def _save(self, kind: str, stem: str, content: bytes) -> str:
        name = f"{kind}/{stem}.png"
        with atomic_path(self.out / name) as temporary:
            temporary.write_bytes(content)
        return name

    def _write_dicom(self, file: _File, said: list[Answer]) -> dict[str, Any]:
        from medduet.inference.dicom import write_dicom

        network = self.predictor.config["network"].get("name", "network")
        stem = self.out / "dicom" / file.stem
        try:
            written = write_dicom(
                file.path, said, stem, network=network, mask_names=self.predictor.mask_names
            )
        except MedDuetError as error:
            return {"error": str(error).removeprefix(f"{file.path}: ")}
        return {"dicom": ";".join(path.relative_to(self.out).as_posix() for path in written)}


def _is_dicom(path: Path) -> bool:
    """Return whether a file that was read is DICOM, with a preamble or without."""
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(HEADER_SIZE))
    except OSError:
        return False
