"""Downloads that arrive whole or not at all. Imports no torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from medduet.data.cache import ProgressFactory, counted
from medduet.errors import DownloadError, MedDuetError
from medduet.utils.files import atomic_path, sweep

RETRIES = 4
"""Further attempts after a failed one, after 1, 2, 3, ... seconds."""
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
_WORTH_RETRYING = (408, 425, 429)
_CHUNK_BYTES = 1 << 20


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    most: int | None = None,
    progress: ProgressFactory | None = None,
) -> Path:
    """Download `url` to `path`, which is written whole or not at all.

    Args:
        url: ``http://``, ``https://``, or what fsspec opens (``s3://`` with s3fs installed, ...).
        path: of the file.
        md5: which the file must have.
        most: bytes; no more are written, whatever the server sends.
        progress: makes a bar.

    Returns:
        `path`.

    Raises:
        DownloadError: after all attempts.
        StorageError: the disk is full.
    """
    sweep(path.parent)
    for attempt in range(RETRIES + 1):
        try:
            with atomic_path(path) as temporary:
                _copy(url, path.name, temporary, md5, most, progress)
            return path
        except MedDuetError:
            raise
        except Exception as error:  # each of fsspec's libraries has errors of its own
            if attempt == RETRIES or _is_permanent(error):
                raise DownloadError(f"{url} could not be downloaded: {_reason(error)}") from error
        time.sleep(attempt + 1)
    raise AssertionError


def _copy(
    url: str,
    name: str,
    target: Path,
    md5: str | None,
    most: int | None,
    progress: ProgressFactory | None,
) -> None:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    opened = _open_http if url.startswith(("http://", "https://")) else _open_fsspec
    with (
        opened(url) as (length, chunks),
        target.open("wb") as file,
        counted(progress, f"download {name}", length) as count,
    ):
        for chunk in chunks:
            size += len(chunk)
            if most is not None and size > most:
                raise ValueError("it is larger than it can be")
            file.write(chunk)
            digest.update(chunk)
            count(len(chunk))
    if md5 is not None and digest.hexdigest() != md5:
        raise OSError("what arrived has the wrong MD5")


@contextmanager
def _open_http(url: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    headers = {"Accept-Encoding": "identity"}  # so that the length is that of the file
    with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
        response.raise_for_status()
        length = int(response.headers.get("Content-Length", 0))
        yield length, response.iter_content(_CHUNK_BYTES)


@contextmanager
def _open_fsspec(url: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    import fsspec  # seldom needed

    with fsspec.open(url, "rb") as file:
        yield int(getattr(file, "size", 0) or 0), iter(lambda: file.read(_CHUNK_BYTES), b"")


def _is_permanent(error: Exception) -> bool:
    """Return whether another attempt would be no use."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in _WORTH_RETRYING
    # An address that is none, a library to install, a file that isn't there or isn't open to all.
    return isinstance(error, ValueError | ImportError | FileNotFoundError | PermissionError)


def _reason(error: Exception) -> str:
    """Return what went wrong in a few words; the errors of requests take several lines."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    return " ".join(str(error).split()) or type(error).__name__
