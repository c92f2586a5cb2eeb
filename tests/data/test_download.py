import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medduet.config import DataConfig
from medduet.data import download, medmnist
from medduet.data.medmnist import RemoteFile, fetch_medmnist
from medduet.data.sources import open_images
from medduet.errors import DownloadError

Arrays = dict[str, np.ndarray]


class Server(ThreadingHTTPServer):
    """Answers each request as `behaviours` says, in order; the last one stays."""

    daemon_threads = True
    content: bytes
    behaviours: list[str]

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.behaviours = ["fine"]
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path)
        todo = server.behaviours.pop(0) if len(server.behaviours) > 1 else server.behaviours[0]
        if todo.isdigit():
            self.send_error(int(todo))
            return
        content = bytes(len(server.content)) if todo == "wrong" else server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if todo == "cut":
            content = content[: len(content) // 2]
        if todo == "stall":
            time.sleep(2)
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server(
    arrays: Arrays, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server of a small set that the index calls bloodmnist at 28 pixels."""
    content = save(arrays, "original.npz").read_bytes()
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        known = dict(medmnist.medmnist_sets())
        md5 = hashlib.md5(content).hexdigest()
        file = RemoteFile(f"{server.address}/records/1/bloodmnist.npz?download=1", md5)
        entry = known["bloodmnist"]
        known["bloodmnist"] = entry._replace(files={**entry.files, 28: file})
        monkeypatch.setattr(medmnist, "medmnist_sets", lambda: known)
        monkeypatch.setattr(download, "RETRIES", 1)
        monkeypatch.setattr("time.sleep", lambda seconds, real=time.sleep: real(min(seconds, 2)))
        yield server
        server.shutdown()
        thread.join()


def _fetch(cache: Path, **options: Any) -> Path:
    return fetch_medmnist(DataConfig(name="bloodmnist", cache=cache, **options), 28)


def _left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "medmnist").iterdir())


@pytest.mark.parametrize("first", ["fine", "cut", "wrong", "429"])
def test_arrives_whole_at_first_or_second_try(server: Server, cache: Path, first: str) -> None:
    server.behaviours = [first, "fine"]
    path = _fetch(cache)
    assert path == cache / "medmnist" / "bloodmnist.npz"
    assert path.read_bytes() == server.content
    assert path.stat().st_mode & 0o777 == 0o644  # readable for others who share the cache
    assert _left(cache) == ["bloodmnist.npz"]
    assert len(server.asked) == (1 if first == "fine" else 2)
    _fetch(cache)
    assert len(server.asked) == (1 if first == "fine" else 2)


@pytest.mark.parametrize(
    ("always", "reason", "tries"),
    [
        ("cut", "could not be downloaded", 2),
        ("wrong", "what arrived has the wrong MD5", 2),
        ("503", "the server answered 503 Service Unavailable", 2),
        ("404", "the server answered 404 Not Found", 1),
        ("stall", "no answer from the server", 2),
    ],
)
def test_failure_tells_all_that_helps_in_one_line(
    server: Server,
    cache: Path,
    always: str,
    reason: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (1.0, 0.3))
    server.behaviours = [always]
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
    assert _fetch(cache, mirror=f"{server.address}/mirror/").is_file()
    assert server.asked == ["/mirror/bloodmnist.npz"]


def test_a_file_put_there_by_hand_needs_no_network(server: Server, cache: Path) -> None:
    (cache / "medmnist").mkdir(parents=True)
    (cache / "medmnist" / "bloodmnist.npz").write_bytes(server.content)
    images = open_images("bloodmnist", cache=cache)
    assert server.asked == []
    assert images.name == "bloodmnist"
    assert images.class_names == medmnist.medmnist_sets()["bloodmnist"].class_names
    assert images.info["licence"] == "CC BY 4.0"
