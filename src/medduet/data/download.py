"""Downloads that arrive whole or not at all. Imports no torch."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import requests

from medduet.data.cache import ProgressFactory, counted, file_digests
from medduet.errors import DownloadError

RETRIES = 4
"""Further attempts after a failed one; pooch waits 1, 2, 3, ... seconds between them."""
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
_WORTH_RETRYING = (408, 425, 429)
_PIECE_BYTES = 1 << 20


def fetch(
    url: str, path: Path, *, md5: str, cache: Path, progress: ProgressFactory | None = None
) -> Path:
    """Return `path`, downloaded from `url` unless a file with the right MD5 lies there already.

    The bytes go to a temporary file beside `path`, which takes its name once the MD5 is right, so
    processes that download the same file at once don't disturb each other.

    DownloadError after all attempts: one line with the file, the address, the MD5 and the folder
    in which to put the file by hand.
    """
    damaged = ""
    try:
        if path.is_file():
            found = file_digests(path, cache, progress).md5
            if found == md5:
                return path
            damaged = f"the file there has the wrong MD5 {found} and "
        _fetch(url, path, f"md5:{md5}", partial(_download, path.name, progress))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DownloadError(
            f"{damaged}{path.name} could not be downloaded from {url}: {_reason(error)}; try again,"
            f" name a mirror, or put the file (MD5 {md5}) into {path.parent} by hand"
        ) from error
    return path


def fetch_any(
    url: str,
    path: Path,
    *,
    most: int,
    progress: ProgressFactory | None = None,
) -> Path:
    """Return `path`, downloaded from `url` unless it is there; of a file that others may write.

    Args:
        url: ``http://``, ``https://``, or what fsspec opens (``s3://`` with s3fs installed, ...).
        path: of the file; as in `fetch` it is whole or not there.
        most: bytes; no more are written, whatever the server sends.
        progress: makes a bar.

    DownloadError after all attempts.
    """
    copy = partial(_copy, most, path.name, progress)
    try:
        _fetch(url, path, None, copy)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{url} could not be downloaded: {_reason(error)}; check the address, and that the "
            "server runs"
        ) from error
    return path


def _fetch(url: str, path: Path, known: str | None, download: Callable[..., None]) -> None:
    """Let pooch get the file at `url`, again and again if the network or the hash is wrong."""
    quiet = logging.Filter("nobody")  # pooch's logger prints; one per call, for several threads
    pooch.get_logger().addFilter(quiet)
    try:
        names = {"registry": {path.name: known}, "urls": {path.name: url}}
        fetcher = pooch.create(path.parent, base_url="", retry_if_failed=RETRIES, **names)
        fetcher.fetch(path.name, downloader=download)
    finally:
        pooch.get_logger().removeFilter(quiet)


def _copy(
    most: int,
    name: str,
    progress: ProgressFactory | None,
    url: str,
    output_file: str,
    fetcher: pooch.Pooch,
) -> None:
    """Download at most `most` bytes from any `url`."""
    pieces = _http_pieces if url.startswith(("http://", "https://")) else _fsspec_pieces
    bar = counted(progress, f"download {name}", most)
    with pieces(url) as arriving, Path(output_file).open("wb") as file, bar as count:
        for piece in arriving:
            most -= len(piece)
            if most < 0:
                raise OSError("it is larger than it can be")
            file.write(piece)
            count(len(piece))
    Path(output_file).chmod(0o644)


@contextmanager
def _http_pieces(url: str) -> Iterator[Iterator[bytes]]:
    headers = {"Accept-Encoding": "identity"}
    with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
        _check_answer(response)
        response.raise_for_status()
        yield response.iter_content(_PIECE_BYTES)


@contextmanager
def _fsspec_pieces(url: str) -> Iterator[Iterator[bytes]]:
    import fsspec  # seldom needed

    try:
        with fsspec.open(url, "rb") as file:
            yield iter(lambda: file.read(_PIECE_BYTES), b"")
    except OSError:  # such as a file that isn't there
        raise
    except (ImportError, ValueError) as error:  # a library to install, or a protocol unknown
        raise OSError(str(error)) from error
    except Exception as error:  # each of its libraries has errors of its own
        raise requests.ConnectionError(f"{type(error).__name__}: {error}") from error


def _check_answer(response: requests.Response) -> None:
    """Raise what pooch doesn't try again after, if it would be no use."""
    status = response.status_code
    if 400 <= status < 500 and status not in _WORTH_RETRYING:
        # pooch tries again after the errors of requests, not after a plain OSError
        raise OSError(f"the server answered {status} {response.reason}")


def _download(
    name: str, progress: ProgressFactory | None, url: str, output_file: str, fetcher: pooch.Pooch
) -> None:
    """Download as pooch does, but also close the bar and the connection when that fails."""
    with ExitStack() as stack:
        bar: Any = False
        if progress is not None:
            bar = stack.enter_context(closing(progress(f"download {name}", 0)))

        def answered(response: requests.Response, **_: object) -> None:
            stack.callback(response.close)
            _check_answer(response)

        download = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=_PIECE_BYTES,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # so that the length is that of the file
            hooks={"response": answered},
        )
        download(url, output_file, fetcher)
    Path(output_file).chmod(0o644)  # pooch's temporary file is closed to others


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
    if "hash" in str(error):
        return "what arrived has the wrong MD5"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    return " ".join(str(error).split())
