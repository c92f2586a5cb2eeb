from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from medduet.data import download, medmnist
from medduet.data.medmnist import RemoteFile, fetch_medmnist
from medduet.data.sources import open_images
from medduet.errors import DownloadError, StorageError

Arrays = dict[str, np.ndarray]


def refused(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code, response.reason = status, "Reason"
    return requests.HTTPError(response=response)


class Server:
    """Gives, or raises, each of `answers` in order; the last one stays."""

    def __init__(self, content: bytes) -> None:
        self.content, self.answers = content, list[bytes | Exception]([content])
        self.asked = list[str]()

    @contextmanager
    def open(self, url: str) -> Iterator[tuple[int, Iterator[bytes]]]:
        self.asked.append(url)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

        def chunks() -> Iterator[bytes]:
            yield self.content[:100] if isinstance(answer, Exception) else answer
            if isinstance(answer, Exception):
                raise answer

        yield len(self.content), chunks()


@pytest.fixture
def server(arrays: Arrays, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of a small set that the index calls bloodmnist at 28 pixels."""
    server = Server(save(arrays, "original.npz").read_bytes())
    sets = dict(medmnist.medmnist_sets())
    md5 = hashlib.md5(server.content).hexdigest()
    file = RemoteFile("https://host/records/1/bloodmnist.npz?download=1", md5)
    sets["bloodmnist"] = sets["bloodmnist"]._replace(files={28: file})
    monkeypatch.setattr(medmnist, "medmnist_sets", lambda: sets)
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr(download, "_open", server.open)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return server


def _fetch(cache: Path, **options: Any) -> Path:
    return fetch_medmnist("bloodmnist", 28, cache=cache, **options)


def _left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "medmnist").iterdir())


@pytest.mark.parametrize("first", [None, b"wrong", OSError("cut"), refused(429)])
def test_arrives_whole_at_first_or_second_try(server: Server, cache: Path, first: Any) -> None:
    server.answers = [*([] if first is None else [first]), server.content]
    tries = len(server.answers)
    path = _fetch(cache)
    assert path == cache / "medmnist" / "bloodmnist.npz"
    assert path.read_bytes() == server.content
    assert path.stat().st_mode & 0o777 == 0o644  # readable for others who share the cache
    assert _left(cache) == ["bloodmnist.npz"]
    _fetch(cache)
    assert len(server.asked) == tries


@pytest.mark.parametrize(
    ("always", "reason", "tries"),
    [
        (requests.ConnectionError("Max retries"), "no answer from the server", 2),
        (b"wrong", "what arrived has the wrong MD5", 2),
        (refused(503), "the server answered 503 Reason", 2),
        (refused(404), "the server answered 404 Reason", 1),
    ],
)
def test_failure_tells_all_that_helps_in_one_line(
    server: Server, cache: Path, always: Any, reason: str, tries: int
) -> None:
    server.answers = [always]
    (cache / "medmnist").mkdir(parents=True)
    (cache / "medmnist" / "bloodmnist.npz").write_bytes(b"half")
    with pytest.raises(DownloadError, match=f"in the cache has the wrong MD5, and .*{reason}") as e:
        _fetch(cache)
    message, file = str(e.value), medmnist.medmnist_sets()["bloodmnist"].files[28]
    assert "\n" not in message
    for part in ("bloodmnist.npz", file.url, file.md5, str(cache / "medmnist"), "by hand"):
        assert part in message
    assert len(server.asked) == tries
    assert _left(cache) == ["bloodmnist.npz"]


def test_mirror(server: Server, cache: Path) -> None:
    assert _fetch(cache, mirror="https://mirror/sets/").is_file()
    assert server.asked == ["https://mirror/sets/bloodmnist.npz"]


def test_a_file_put_there_by_hand_needs_no_network(server: Server, cache: Path) -> None:
    (cache / "medmnist").mkdir(parents=True)
    (cache / "medmnist" / "bloodmnist.npz").write_bytes(server.content)
    images = open_images("bloodmnist", cache=cache)
    assert server.asked == []
    assert images.name == "bloodmnist"
    assert images.class_names == medmnist.medmnist_sets()["bloodmnist"].class_names
    assert images.info["licence"] == "CC BY 4.0"


def test_full_disk(server: Server, cache: Path) -> None:
    server.answers = [OSError(ENOSPC, "No space left on device")]
    with pytest.raises(StorageError, match="the disk is full"):
        _fetch(cache)
    assert _left(cache) == []
