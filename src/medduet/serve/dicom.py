"""Answers in DICOM: a segmentation and a structured report, as DICOMweb sends several files."""

import json
import re
import secrets
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import Response
from starlette.exceptions import HTTPException

from medduet.data.workers import WorkerPool
from medduet.errors import DataError
from medduet.inference.predictor import Prediction, Predictor
from medduet.inference.results import InputFile, ResultWriter
from medduet.inference.source import series_of
from medduet.serve.uploads import kind_of_upload

_NAMED = re.compile(r'(^|[\s,="])application/dicom($|[\s,;"])')
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def wants_dicom(accept: str) -> bool:
    """Return whether an ``Accept`` header asks for DICOM, alone or in ``multipart/related``."""
    return "application/json" not in accept and _NAMED.search(accept.lower()) is not None


def encode_dicom(
    predictor: Predictor, readers: WorkerPool, content: bytes, predictions: Sequence[Prediction]
) -> Response:
    """Return the results for a DICOM file; HTTPException 406 for others, 422 for a useless one."""
    if kind_of_upload(content) != "DICOM":
        raise HTTPException(406, "expected a DICOM file: omit Accept: application/dicom")
    if len(predictor.options.sides) == 3:
        raise HTTPException(406, "volumes are answered in JSON: omit Accept: application/dicom")
    config, classes = predictor.config, (predictor.class_names, predictor.mask_names)
    network = sha256(config.model_dump_json().encode()).hexdigest()
    seed = json.dumps([network, predictor.coverage, predictor.min_confidence])
    with TemporaryDirectory(prefix="medduet-", dir=_MEMORY) as folder:
        abstains = predictor.min_confidence is not None
        results = ResultWriter(Path(folder), predictor.mask_names, abstains, overlays=False)
        writer: tuple[Any, ...] = (config.network.name, *classes, {}, seed)
        files = readers.call(partial(_results, results, writer), (content, predictions))
    if isinstance(files, str):
        raise HTTPException(422, files.replace(f"{folder}/", ""))
    if not files:
        return Response(status_code=204)
    boundary = secrets.token_hex(16)
    start = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(start + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return Response(body, media_type=kind)


def _results(
    results: ResultWriter, writer: tuple[Any, ...], item: tuple[bytes, list[Prediction]]
) -> list[bytes]:
    out, file = results.out, InputFile(results.out / "image", "image", "image")
    file.path.write_bytes(item[0])
    rows = results.write(file, item[1])
    for _, series in series_of([file.path]):
        if isinstance(series, DataError):
            raise series
    from medduet.inference.dicom import DicomWriter  # which needs highdicom

    names, problem = DicomWriter(out, *writer).write([(file.path, file.stem, rows)])
    if problem:
        raise DataError(problem)
    return [(out / name).read_bytes() for name in names]
