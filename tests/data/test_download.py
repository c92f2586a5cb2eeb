import hashlib
import time
from collections.abc import Callable
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


@pytest.fixture
def original(arrays: Arrays, save: Callable[..., Path]) -> Path:
    return save(arrays, "bloodmnist.npz")


@pytest.fixture
def server(original: Path, serve: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of a small set that the index calls bloodmnist at 28 pixels."""
    server, sets = serve(original.parent), dict(medmnist.medmnist_sets())
    md5 = hashlib.md5(original.read_bytes()).hexdigest()
    file = RemoteFile("bloodmnist.npz", f"{server.address}/bloodmnist.npz?download=1", md5)
    entry = sets["bloodmnist"]
    sets["bloodmnist"] = entry._replace(files={**entry.files, 28: file})
    monkeypatch.setattr(medmnist, "medmnist_sets", lambda: sets)
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr("time.sleep", lambda seconds, real=time.sleep: real(min(seconds, 2)))
    return server


def _fetch(cache: Path, **options: Any) -> Path:
    return fetch_medmnist(DataConfig(name="bloodmnist", cache=cache, **options), 28)


def _left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "medmnist").iterdir())


@pytest.mark.parametrize("first", [200, "cut", "wrong", 429])
def test_arrives_whole_at_first_or_second_try(
    server: Any, original: Path, cache: Path, first: int | str
) -> None:
    server.failures = [first]
    path = _fetch(cache)
    assert path == cache / "medmnist" / "bloodmnist.npz"
    assert path.read_bytes() == original.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644  # readable for others who share the cache
    assert _left(cache) == ["bloodmnist.npz"]
    _fetch(cache)
    assert len(server.asked) == (1 if first == 200 else 2)


@pytest.mark.parametrize(
    ("always", "reason", "tries"),
    [
        ("cut", "could not be downloaded", 2),
        ("wrong", "what arrived has the wrong MD5", 2),
        (503, "the server answered 503 Service Unavailable", 2),
        (404, "the server answered 404 Not Found", 1),
        ("late", "no answer from the server", 2),
    ],
)
def test_failure_tells_all_that_helps_in_one_line(
    server: Any,
    cache: Path,
    always: int | str,
    reason: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (1.0, 0.3))
    server.failures = [always] * 9
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


def test_mirror(server: Any, cache: Path) -> None:
    assert _fetch(cache, mirror=f"{server.address}/").is_file()
    assert server.asked == ["bloodmnist.npz"]


def test_a_small_file_is_enlarged_where_that_is_asked_for(server: Any, cache: Path) -> None:
    data = DataConfig(name="bloodmnist", cache=cache, size=40, medmnist_size=28)
    assert open_images(data).size == (40, 40)
    assert _left(cache) == ["bloodmnist.npz"]  # not the file of 64 pixels
    assert open_images(data.model_copy(update={"size": None})).size == (28, 28)


def test_a_file_put_there_by_hand_needs_no_network(
    server: Any, original: Path, cache: Path
) -> None:
    (cache / "medmnist").mkdir(parents=True)
    original.rename(cache / "medmnist" / "bloodmnist.npz")
    images = open_images("bloodmnist", cache=cache)
    assert server.asked == []
    assert images.name == "bloodmnist"
    assert images.class_names == medmnist.medmnist_sets()["bloodmnist"].class_names
    assert images.info["licence"] == "CC BY 4.0"
