"""Downloads that arrive whole or not at all. Imports no torch."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import requests

from medduet.data.cache import Progress, counted
from medduet.errors import DownloadError, MedDuetError
from medduet.utils.files import atomic_path, sweep

RETRIES = 4
"""Further attempts after a failed one, after 1, 2, 3, ... seconds."""
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
# No other attempt helps: a refusal, an invalid address, a missing library, no such file.
_REFUSED = {*range(400, 500)} - {408, 425, 429}
_PERMANENT = (ValueError, ImportError, FileNotFoundError, PermissionError)
_CHUNK_BYTES = 1 << 20
Result = TypeVar("Result")


def download(url: str, path: Path, md5: str, progress: Progress = None) -> Path:
    """Download `url`, of HTTP or of fsspec, to `path`, whole and with that `md5` or not at all."""
    sweep(path.parent)

    def fetch() -> Path:
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
            if digest.hexdigest() != md5:
                raise OSError("what arrived has the wrong MD5")
        return path

    return _try(url, fetch)


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


@contextmanager
def _open(url: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open `url` and give its length, 0 if that is not known, and its chunks."""
    if url.startswith(("http://", "https://")):
        headers = {"Accept-Encoding": "identity"}  # so that the length is that of the file
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            response.raise_for_status()
            length = int(response.headers.get("Content-Length", 0))
            yield length, response.iter_content(_CHUNK_BYTES)
    else:
        import fsspec  # seldom needed

        with fsspec.open(url, "rb") as file:
            yield int(getattr(file, "size", 0) or 0), iter(lambda: file.read(_CHUNK_BYTES), b"")


def _try(url: str, fetch: Callable[[], Result]) -> Result:
    for attempt in range(RETRIES + 1):
        try:
            return fetch()
        except MedDuetError:
            raise
        except Exception as error:  # each of fsspec's libraries has errors of its own
            response = getattr(error, "response", None)
            refused = response is not None and response.status_code in _REFUSED
            if attempt == RETRIES or refused or isinstance(error, _PERMANENT):
                reason = str(error) or type(error).__name__
                if response is not None:
                    reason = f"the server answered {response.status_code} {response.reason}"
                elif isinstance(error, requests.Timeout | requests.ConnectionError):
                    reason = "no answer from the server"
                raise DownloadError(f"{url} could not be downloaded: {reason}") from error
        time.sleep(attempt + 1)
    raise AssertionError
