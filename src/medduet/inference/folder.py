"""Predicting whole folders: a table, masks and pictures, and nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from medduet.config import Device
from medduet.data.cache import ProgressFactory, counted
from medduet.data.folders import images_and_masks, stem_of
from medduet.data.reading.images import Picture, read_pictures
from medduet.data.workers import WorkerPool
from medduet.errors import ConfigError, Interrupted, MissingFileError
from medduet.inference.prediction import Prediction
from medduet.inference.predictor import Predictor
from medduet.inference.results import InputFile, ResultWriter
from medduet.utils.files import finite, storage_errors, sweep, write_json
from medduet.utils.locks import exclusive, holder
from medduet.utils.parsing import as_text, read_object

JOURNAL, SETTINGS = "done.jsonl", "settings.json"
_BYTES_TOGETHER = 1 << 28
_DECISIVE = {
    "network",
    "class_names",
    "mask_names",
    "multi_label",
    "layout",
    "preprocessing",
    "precision",
    "calibration",
    "ood",
}
"""The parts of ``config.json`` on which predictions depend."""
_FEW = 64
"""Files that one process has read before a second one has started."""


@dataclass(frozen=True)
class PredictRecord:
    """Predictions in a folder.

    Attributes:
        path: the folder.
        images: number of images in the table, those that can't be read left out.
        broken: what can't be read or written, and why.
        skipped: files that were done already.
        ood: number of images that are out of distribution.
    """

    path: Path
    images: int
    broken: dict[str, str]
    skipped: int
    ood: int = 0


def predict_files(
    path: str | Path,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    classify_only: bool = False,
    explain: bool = False,
    coverage: float | None = None,
    min_confidence: float | None = None,
    overlays: bool = True,
    dicom: bool = True,
    device: Device = "auto",
    batch_size: int | None = None,
    progress: ProgressFactory | None = None,
    stop: threading.Event | None = None,
) -> PredictRecord:
    """Predict files and the images in folders, and write the results to the folder `out`.

    ``predictions.csv`` has a row for each frame; masks (PNG, values are the classes), overlays,
    heat maps, and DICOM-SEG and structured reports of DICOM files lie in folders beside it, masks
    at the size of the image. The same call again goes on where it was stopped, and predicts
    what was changed or could not be read.

    Args:
        path: a bundle, a run, or an exported network, see `medduet.Predictor`.
        sources: files, and folders with all that is in them but masks.
        out: the folder to write.
        classify_only: predict classes alone; the decoder is not run.
        explain: also write heat maps (Grad-CAM).
        coverage: share of images whose true class is to be in the prediction set; ``None`` for
            0.9 if the network is calibrated.
        min_confidence: confidence below which the network abstains.
        overlays: whether to write the image with its mask over it.
        dicom: whether to write results in DICOM for DICOM files.
        device: auto, cpu, cuda, cuda:1 or mps.
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
        ...     "class_names": ["a", "b"],
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
        "min_confidence": min_confidence,
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
        done = _read_journal(out / JOURNAL, files)
        waiting = [file for file in files if file.name not in done]
        writer = ResultWriter(out, predictor, overlays=overlays, dicom=dicom)
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
    ood = sum(bool(row.get("warning")) for row in rows)
    return PredictRecord(out, images, broken, len(files) - len(waiting), ood)


def _listed(sources: Sequence[Path], out: Path) -> tuple[Path, list[InputFile]]:
    """Return the folder that all sources share, and the files, named by their paths below it."""
    if not sources:
        raise ConfigError("expected files or folders: medduet predict BUNDLE PATH... --out DIR")
    paths: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            images, _ = images_and_masks(source)
            inside = [each for each in images if out not in each.parents]
            if not inside:
                where = f" outside of --out, {out}" if images else ""
                raise MissingFileError(f"expected images in {source}{where}, but there are none")
            paths |= dict.fromkeys(inside)
        elif source.is_file():
            paths[source] = None
        else:
            raise MissingFileError(f"expected an image or a folder, but there is no {source}")
    root = Path(os.path.commonpath([each if each.is_dir() else each.parent for each in sources]))
    stems = Counter((path.parent, stem_of(path)) for path in paths)
    # Masks are named as their images, so that both are a set; unless two images are named so.
    twins = {folder for (folder, _), count in stems.items() if count > 1}
    files = []
    for path in paths:
        name = path.relative_to(root)
        stem = name if path.parent in twins else name.with_name(stem_of(path))
        files.append(InputFile(path, as_text(name), as_text(stem)))
    return root, files


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.expanduser().absolute()))


def _identity(predictor: Predictor) -> dict[str, Any]:
    """Return what tells one network from others that would predict otherwise."""
    config = predictor.config
    weights = config.weights_sha256 if config.export is None else config.export.sha256
    rest = config.model_dump_json(include=_DECISIVE)
    return {"weights": weights, "rest": hashlib.sha256(rest.encode()).hexdigest()}


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.is_file():
        write_json(path, settings)
        return
    earlier = read_object(path)
    if earlier == settings:
        return
    key = next((key for key in settings if earlier.get(key) != settings[key]), "network")
    difference = {
        "network": "another network, or another calibration of it",
        "images": f"images below {earlier.get('images')}",
    }.get(key, f"another --{key.replace('_', '-')}")
    raise ConfigError(f"{path.parent} has predictions of {difference}: give another --out")


def _stamp(path: Path) -> list[int]:
    """Return what tells one state of a file from another; nothing if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _read_journal(path: Path, files: Sequence[InputFile]) -> dict[str, dict[str, Any]]:
    """Return the entries of files that are done: unchanged since, and without an error.

    What a kill left half written is removed.
    """
    if not path.is_file():
        return {}
    entries, complete = {}, 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            entries[entry["file"]] = entry["stamp"], entry["rows"]
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        complete += len(line)
    os.truncate(path, complete)
    done = {}
    for file in files:
        stamp, rows = entries.get(file.name, (None, []))
        if stamp == _stamp(file.path) and not any(row.get("error") for row in rows):
            done[file.name] = {"file": file.name, "stamp": stamp, "rows": rows}
    return done


def _predict(
    predictor: Predictor,
    files: Sequence[InputFile],
    writer: ResultWriter,
    done: dict[str, dict[str, Any]],
    progress: ProgressFactory | None,
    stop: threading.Event,
) -> None:
    """Predict `files` and note each when all of it is written."""
    if not files:
        return
    stamps = [_stamp(file.path) for file in files]
    total = sum(size for size, _ in stamps)
    with (
        counted(progress, "predict", total) as count,
        storage_errors(writer.out / JOURNAL),
        (writer.out / JOURNAL).open("a", encoding="utf-8") as journal,
        WorkerPool(None if len(files) > _FEW else 1) as pool,
    ):
        read = partial(read_pictures, options=predictor.options)
        results = _predicted(predictor, pool.map(read, [file.path for file in files]))
        for file, stamp, predictions in zip(files, stamps, results, strict=True):
            rows = writer.write(file, predictions)
            entry = {"file": file.name, "stamp": stamp, "rows": finite(rows)}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            done[file.name] = entry
            count(stamp[0])
            if stop.is_set():
                break


def _predicted(
    predictor: Predictor, read: Iterator[list[Picture] | str]
) -> Iterator[list[Prediction] | str]:
    """Yield the predictions file by file; frames of several files are computed together."""
    group: list[list[Picture] | str] = []
    for item in chain(read, [None]):
        if item is not None:
            group.append(item)
        pictures = [each for file in group if not isinstance(file, str) for each in file]
        size = sum(picture.whole.nbytes for picture in pictures)
        if item is None or len(pictures) >= predictor.batch_size or size >= _BYTES_TOGETHER:
            predictions = iter(predictor.predict_pictures(pictures))
            for file in group:
                yield file if isinstance(file, str) else list(islice(predictions, len(file)))
            group = []
