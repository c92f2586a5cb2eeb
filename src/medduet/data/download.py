"""Downloads that arrive whole or not at all. Imports no torch."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
_CHUNK_BYTES = 1 << 20
_WORTH_RETRYING = (408, 425, 429)


def fetch(
    url: str,
    path: Path,
    *,
    md5: str,
    cache: Path,
    progress: ProgressFactory | None = None,
) -> Path:
    """Return `path`, downloaded from `url` unless a file with the right MD5 lies there already.

    The bytes go to a temporary file beside `path`, which takes its name once the MD5 is right, so
    processes that download the same file at once don't disturb each other.

    Raises:
        DownloadError: after all attempts; one line with the file, the address, the MD5 and the
            folder in which to put the file by hand.
    """
    damaged = ""
    if path.is_file():
        found = file_digests(path, cache, progress).md5
        if found == md5:
            return path
        damaged = f"the file there has the wrong MD5 {found} and "
    try:
        fetcher = pooch.create(
            path.parent,
            base_url="",
            registry={path.name: f"md5:{md5}"},
            urls={path.name: url},
            retry_if_failed=RETRIES,
        )
        with _quiet_pooch():
            fetcher.fetch(path.name, downloader=_downloader(path.name, progress))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DownloadError(
            f"{damaged}{path.name} could not be downloaded from {url}: {_reason(error)}; try again,"
            f" name a mirror, or put the file (MD5 {md5}) into {path.parent} by hand"
        ) from error
    return path


def _downloader(name: str, progress: ProgressFactory | None) -> Any:
    """Return a downloader for pooch; unlike its own, it closes the connection when it fails."""

    def download(url: str, output_file: str, pooch_object: Any) -> None:
        headers = {"Accept-Encoding": "identity"}  # so that the length is that of the file
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
                total = int(response.headers.get("Content-Length", 0))
                with (
                    Path(output_file).open("wb") as file,
                    counted(progress, f"download {name}", total) as count,
                ):
                    for chunk in response.iter_content(_CHUNK_BYTES):
                        file.write(chunk)
                        count(len(chunk))
        except requests.HTTPError as error:
            if _is_final(error):  # pooch repeats every RequestException, but no plain OSError
                raise OSError(_reason(error)) from error
            raise

    return download


def _is_final(error: requests.HTTPError) -> bool:
    """Tell whether the server's answer will be the same next time."""
    status = 0 if error.response is None else error.response.status_code
    return 400 <= status < 500 and status not in _WORTH_RETRYING


def _reason(error: BaseException) -> str:
    """Return what went wrong in a few words; the errors of requests take several lines."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    if isinstance(error, ValueError) and "hash" in str(error):
        return "what arrived has the wrong MD5"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    return " ".join(str(error).split())


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch from writing to stderr; its logger stands outside of `logging`'s tree.

    A filter of each call's own leaves nothing behind, even if several threads download at once.
    """
    logger = pooch.get_logger()

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
