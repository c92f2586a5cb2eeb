"""Predicting whole folders: a table, masks and pictures, and nothing twice."""

import hashlib
import json
import os
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from medduet.config import Device
from medduet.data.cache import Progress, counted
from medduet.data.folders import CHANNEL, further_channels, images_and_masks, stem_of
from medduet.data.listing import by_name_alone
from medduet.data.reading.images import Picture, read_pictures
from medduet.data.workers import WorkerPool
from medduet.errors import ConfigError, DataError, Interrupted, MissingFileError
from medduet.inference.codes import read_codes
from medduet.inference.predictor import Prediction, Predictor
from medduet.inference.results import InputFile, ResultWriter, Row, files_of, joined
from medduet.inference.source import series_of
from medduet.runs.folder import check_empty
from medduet.utils.files import finite, storage_errors, sweep, write_json, write_text
from medduet.utils.locks import exclusive, holder, result_folder
from medduet.utils.parsing import as_text, csv_text, misread, parse_json, read_json

TABLE = "predictions.csv"
_JOURNAL = "done.jsonl"
_NOT_IN_DICOM = ("images", "overlays", "dicom", "probabilities")  # settings
_FILES_AT_ONCE = 16  # files whose frames are in memory together
_ONE_PROCESS = 64  # files that one process has read before a second one has started
_Done = dict[str, list[Row]]  # the rows of each file that is done, by its name in the table


@dataclass(frozen=True)
class PredictRecord:
    """Predictions in a folder.

    Attributes:
        images: in the table, those that can't be read left out.
        broken: what can't be read or written, and why.
        skipped: files that were done already.
        ood: images that are out of distribution.
        notes: sentences on what is left out, and on DICOM results that are several.
    """

    path: Path
    images: int
    broken: dict[str, str]
    skipped: int
    ood: int = 0
    notes: tuple[str, ...] = ()


def predict_files(
    path: str | Path,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    classify_only: bool = False,
    explain: bool = False,
    probabilities: bool = False,
    coverage: float | None = None,
    min_confidence: float | None = None,
    overlays: bool = True,
    dicom: bool = True,
    codes: Path | None = None,
    device: Device = "auto",
    batch_size: Annotated[int, Field(ge=1)] | None = None,
    progress: Progress = None,
    stop: threading.Event | None = None,
) -> PredictRecord:
    """Predict files and the images in folders, and write the results to the folder `out`.

    The same call again goes on where it was stopped, and predicts what was changed or not read.

    Args:
        path: a bundle, a run, or an exported network, see `medduet.Predictor`.
        sources: files, and folders with all that is in them but masks.
        out: the folder to write.
        classify_only: predict classes alone; the decoder is not run.
        explain: also write heat maps (Grad-CAM).
        probabilities: also write those of the mask classes: (K, H, W) in .npy, volumes as NIfTI.
        coverage: share of images whose class is to be in the prediction set; ``None`` for 0.9.
        min_confidence: confidence below which the network abstains.
        overlays: whether to write the image with its mask over it.
        dicom: whether to write results in DICOM for DICOM files.
        codes: a CSV of codes of classes: name, value, scheme, meaning[, category].
        device: auto, cpu, cuda or cuda:1.
        batch_size: images that are computed together; ``None`` for as many as are worth it.
        progress: draws how many bytes of the files are done.
        stop: set it to stop after the current batch.

    Raises:
        ConfigError: options that the network can't fulfil, or `out` has those of another one; or
            `codes` is not as described.
        Interrupted: `stop` was set.
        MissingFileError: there is no network, or nothing at one of `sources`.
    """
    out = _absolute(out)
    if (out / "config.json").is_file():
        raise ConfigError(f"{out} is a run or a bundle: give another --out")
    root, files, notes = _list_files([_absolute(source) for source in sources], out)
    options: dict[str, Any] = {
        "classify_only": classify_only,
        "explain": explain,
        "probabilities": probabilities,
        "coverage": coverage,
        "min_confidence": min_confidence,
    }
    predictor = Predictor(path, **options, device=device, batch_size=batch_size)
    if len(predictor.options.sides) == 3:
        files = _with_channels(root, joined([x.path for x in files]), predictor.options.channels)
    network = hashlib.sha256(predictor.config.model_dump_json().encode()).hexdigest()
    settings = {"network": network, "images": as_text(root), "overlays": overlays, "dicom": dicom}
    settings |= options
    if codes is not None:
        names = (*predictor.class_names, *predictor.mask_names[1:])
        settings["codes"] = read_codes(codes, names)
    with exclusive(result_folder(out) / ".lock") as alone:
        if not alone:
            raise ConfigError(f"{holder(out / '.lock')} is writing to {out}: give another --out")
        sweep(out)
        if not (saved := out / "settings.json").is_file():
            check_empty(out)
        elif read_json(saved) != settings:
            raise ConfigError(f"{out} is of another network, images or options: give another --out")
        write_json(saved, settings)
        done, written = _read_journal(out / _JOURNAL, files)
        waiting = [file for file in files if file.name not in done]
        abstains = min_confidence is not None
        writer = ResultWriter(out, predictor.mask_names, abstains, overlays)
        stop = stop or threading.Event()
        try:
            _predict(predictor, writer, waiting, done, progress, stop)
            if dicom and len(done) == len(files):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of values that bend the standard
                    notes += _write_dicom(
                        predictor, out, settings, files, done, written, progress, stop
                    )
        finally:
            rows = [row for file in files for row in done.get(file.name, [])]
            columns = dict.fromkeys(["file", *chain.from_iterable(rows)])
            last = [*(name for name in columns if name != "error"), "error"]
            table = pd.DataFrame(rows, columns=last, dtype=object)
            write_text(out / TABLE, csv_text(table))
    if stop.is_set() and len(done) < len(files):
        raise Interrupted(f"{len(done)} of {len(files)} files are done: run it again to resume")
    return PredictRecord(
        out,
        images=sum("height" in row for row in rows),
        broken={row["file"]: row["error"] for row in rows if row.get("error")},
        skipped=len(files) - len(waiting),
        ood=sum(bool(row.get("warning")) for row in rows),
        notes=tuple(notes),
    )


def _list_files(sources: Sequence[Path], out: Path) -> tuple[Path, list[InputFile], list[str]]:
    """Return the folder that all sources share, and the files, named by their paths below it.

    The last are sentences on what is left out.
    """
    if not sources:
        raise ConfigError("expected files or folders: medduet predict BUNDLE PATH... --out DIR")
    paths: dict[Path, None] = {}
    notes: list[str] = []
    for source in sources:
        inside = [source] if source.is_file() else []
        if source.is_dir():
            images, drawn, left_out = images_and_masks(source)
            masks, found = by_name_alone(images, drawn)
            notes += left_out + found
            names = {stem_of(path) for path in images}
            names |= {match["of"] for match in map(CHANNEL.fullmatch, names) if match}
            # What is called as a mask is, but belongs to no image, may be one.
            alone = [path for (_, of), group in masks.items() if of not in names for path in group]
            alone = alone if images else []
            inside = [path for path in (*images, *alone) if out not in path.parents]
        if not inside:
            reason = f"outside {out}, found none" if source.exists() else "which isn't there"
            raise MissingFileError(f"expected images in {source}, {reason}")
        paths |= dict.fromkeys(inside)
    folders = [source if source.is_dir() else source.parent for source in sources]
    root = Path(os.path.commonpath(folders))
    return root, _named(root, list(paths)), notes


def _named(root: Path, paths: Sequence[Path]) -> list[InputFile]:
    """Return files, or folders of a series, by their names below `root`."""
    # Masks have the names of their images, so that both are a set; unless two images share a name.
    stems = Counter((path.parent, stem_of(path)) for path in paths)
    twins = {folder for (folder, _), count in stems.items() if count > 1}
    files = []
    for path in paths:
        if path == root:  # the folder of a series
            files.append(InputFile(path, as_text(root.name), as_text(root.name)))
            continue
        name = path.relative_to(root)
        stem = name if path.parent in twins else name.with_name(stem_of(path))
        files.append(InputFile(path, as_text(name), as_text(stem)))
    return files


def _with_channels(root: Path, paths: Sequence[Path], count: int) -> list[InputFile]:
    """Return volumes of so many channels by the file of the first."""
    further = further_channels(paths) if count > 1 else {}
    more = Counter(further.values())
    if others := [path for path in more if more[path] != count - 1]:
        given = f"given {1 + more[others[0]]} of {others[0]}"
        raise DataError(f"expected {count} channels of each volume, as in training, {given}")
    return _named(root, [path for path in paths if path not in further])


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).expanduser().absolute()))


def _stamp(path: Path) -> list[int]:
    """Return what tells one state of a file, or of a series, from another; zeros if it is gone.

    Files of further channels are part of the first.
    """
    files = [*path.iterdir()] if path.is_dir() else [path] * path.exists()
    match = CHANNEL.fullmatch(stem_of(path))
    if match and not int(match["number"]):
        channels = path.parent.glob(f"{escape(match['of'])}_[0-9][0-9][0-9][0-9].*")
        files += (file for file in channels if file != path)
    states = [file.stat() for file in files]
    sizes, times = [x.st_size for x in states], [x.st_mtime_ns for x in states]
    return [sum(sizes), max(times, default=0)]


def _read_journal(path: Path, files: Iterable[InputFile]) -> tuple[_Done, dict[str, list[str]]]:
    """Return what is done of files that are unchanged since, and the results in DICOM.

    What a kill left half is removed.
    """
    content = path.read_bytes() if path.is_file() else b""
    *lines, half = content.split(b"\n")
    if half:
        os.truncate(path, len(content) - len(half))
    with misread(path):
        journal = [*map(parse_json, map(bytes.decode, lines))]
        written = {entry["series"]: entry["dicom"] for entry in journal if "series" in entry}
        entries = {entry["file"]: entry for entry in journal if "file" in entry}
        stamps = {file.name: _stamp(file.path) for file in files if file.name in entries}
        unchanged = [name for name, stamp in stamps.items() if entries[name]["stamp"] == stamp]
        return {name: entries[name]["rows"] for name in unchanged}, written


def _predict(
    predictor: Predictor,
    writer: ResultWriter,
    files: Sequence[InputFile],
    done: _Done,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Predict `files` and note each in the journal when all of it is written."""
    if not files:
        return
    path, stamps = writer.out / _JOURNAL, [_stamp(file.path) for file in files]
    with (
        counted(progress, "predict", sum(size for size, _ in stamps)) as count,
        storage_errors(path),
        path.open("a", encoding="utf-8") as journal,
        WorkerPool(None if len(files) > _ONE_PROCESS else 1) as pool,
    ):
        read = partial(read_pictures, options=predictor.options)
        results = _predict_groups(predictor, pool.map(read, [file.path for file in files]))
        for file, stamp, predictions in zip(files, stamps, results, strict=True):
            rows = done[file.name] = finite(writer.write(file, predictions))
            if not any(row.get("error") for row in rows):
                entry = {"file": file.name, "stamp": stamp, "rows": rows}
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
            count(stamp[0])
            if stop.is_set():
                break


def _predict_groups(
    predictor: Predictor, read: Iterator[list[Picture] | str]
) -> Iterator[list[Prediction] | str]:
    """Yield the predictions file by file; frames of several files are computed together."""
    while group := list(islice(read, min(_FILES_AT_ONCE, predictor.batch_size))):
        pictures = [frame for file in group if not isinstance(file, str) for frame in file]
        predictions = iter(predictor.predict_pictures(pictures))
        for file in group:
            yield file if isinstance(file, str) else list(islice(predictions, len(file)))


def _write_dicom(
    predictor: Predictor,
    out: Path,
    settings: dict[str, Any],
    files: Sequence[InputFile],
    done: _Done,
    written: dict[str, list[str]],
    progress: Progress,
    stop: threading.Event,
) -> list[str]:
    """Write what was predicted of DICOM files, series by series, but not twice; return notes."""
    groups: dict[tuple[str, int], list[InputFile]] = defaultdict(list)
    readable = {file.path: file for file in files if "height" in done[file.name][0]}
    series = {path: file for path, file in readable.items() if path.is_dir()}
    for path, key in series_of(readable.keys() - series.keys()):
        if isinstance(key, DataError):
            done[readable[path].name][0]["error"] = str(key).removeprefix(f"{path}: ")
        else:
            groups[key].append(readable[path])
    groups |= {(file.name, 0): [file] for file in series.values()}
    if not groups:
        return []
    from medduet.inference.dicom import DicomWriter  # which needs highdicom

    seed = json.dumps([x for name, x in settings.items() if name not in _NOT_IN_DICOM])
    network, masks = predictor.config.network.name, predictor.mask_names
    classes, codes = predictor.class_names, settings.get("codes", {})
    results = DicomWriter(out, network, classes, masks, codes, seed)
    several, journal = 0, out / _JOURNAL
    with counted(progress, "dicom", len(groups)) as count, storage_errors(journal):
        for key, group in groups.items():
            if stop.is_set():
                raise Interrupted("not all is written in DICOM: run it again to resume")
            state = json.dumps([*key, *([file.name, *_stamp(file.path)] for file in group)])
            names, problem = written.get(state, []), ""
            if not (names and all((out / name).is_file() for name in names)):
                try:
                    parts = (files_of(x.path, x.stem, done[x.name], out, masks) for x in group)
                    names, problem = results.write([*chain.from_iterable(parts)], key[1])
                except DataError as error:
                    problem = str(error).removeprefix(f"{group[0].path}: ")
                if not problem:
                    with journal.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps({"series": state, "dicom": names}) + "\n")
            for file in group:
                done[file.name][0] |= {"dicom": ";".join(names), "error": problem}
            several += sum(not name.endswith("-sr.dcm") for name in names) > 1
            count(1)
    note = f"{several} series with images of several sizes or planes have a segmentation for each"
    return [note] * bool(several)
