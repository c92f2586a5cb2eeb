"""Downloads that arrive whole or not at all. Imports no torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

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
Result = TypeVar("Result")


def download(
    url: str, path: Path, *, md5: str | None = None, progress: ProgressFactory | None = None
) -> Path:
    """Download `url` to `path`, which is written whole or not at all, and return it.

    Args:
        url: ``http://``, ``https://``, or what fsspec opens (``s3://`` with s3fs installed, ...).
        path: of the file.
        md5: which the file must have.
        progress: makes a bar.

    Raises:
        DownloadError: after all attempts.
        StorageError: the disk is full.
    """
    sweep(path.parent)

    def fetch() -> None:
        digest = hashlib.md5(usedforsecurity=False)
        with (
            atomic_path(path) as temporary,
            temporary.open("wb") as file,
            _open(url) as (length, chunks),
            counted(progress, f"download {path.name}", length) as count,
        ):
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                count(len(chunk))
            if md5 is not None and digest.hexdigest() != md5:
                raise OSError("what arrived has the wrong MD5")

    _try(url, fetch)
    return path


def read_url(url: str, most: int) -> bytes:
    """Return the content of `url`, which may have `most` bytes; errors as of `download`."""

    def fetch() -> bytes:
        content = bytearray()
        with _open(url) as (_, chunks):
            for chunk in chunks:
                content += chunk
                if len(content) > most:
                    raise ValueError("it is larger than it can be")
        return bytes(content)

    return _try(url, fetch)


def _try(url: str, fetch: Callable[[], Result]) -> Result:
    for attempt in range(RETRIES + 1):
        try:
            return fetch()
        except MedDuetError:
            raise
        except Exception as error:  # each of fsspec's libraries has errors of its own
            if attempt == RETRIES or _is_permanent(error):
                raise DownloadError(
                    f"{url} could not be downloaded: {_reason(error)}; check the address, and that "
                    "the server runs"
                ) from error
        time.sleep(attempt + 1)
    raise AssertionError


def _open(url: str) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
    """Open `url` and give its length, 0 if that is not known, and its chunks."""
    return (_open_http if url.startswith(("http://", "https://")) else _open_fsspec)(url)


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
