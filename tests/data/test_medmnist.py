from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medduet.data.medmnist import cached_sizes, lookup, medmnist_sets
from medduet.errors import ConfigError


def test_the_index_is_that_of_the_package(tmp_path: Path) -> None:
    # In a process of its own: importing medmnist is slow and creates a folder in the home.
    code = "import json, medmnist.info as info; print(json.dumps(info.INFO))"
    import json

    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    official = json.loads(run.stdout.splitlines()[-1])
    flat = {flag for flag in official if not flag.endswith("3d")}
    assert set(medmnist_sets()) == flat
    for flag in flat:
        entry, info = official[flag], lookup(flag)
        assert info.samples == tuple(entry["n_samples"][s] for s in ("train", "val", "test"))
        assert info.class_names == tuple(entry["label"].values())
        assert (info.in_channels, info.task, info.licence) == (
            entry["n_channels"],
            entry["task"],
            entry["license"],
        )
        assert info.sizes == (28, 64, 128, 224)
        assert info.files[28] == (entry["url"], entry["MD5"])
        assert info.files[224] == (entry["url_224"], entry["MD5_224"])
        assert info.files[64].name == f"{flag}_64.npz"


def test_listing_needs_neither_torch_nor_a_folder_in_the_home(tmp_path: Path) -> None:
    code = (
        "import sys; from medduet.data import medmnist_sets, cached_sizes;"
        "cached_sizes('bloodmnist'); print(len(medmnist_sets()), 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path)},
    )
    assert run.stdout.split() == ["12", "False"]
    assert list(tmp_path.iterdir()) == []


def test_cached_sizes(cache: Path) -> None:
    assert cached_sizes("bloodmnist", cache) == ()
    (cache / "medmnist").mkdir(parents=True)
    (cache / "medmnist" / "bloodmnist_64.npz").touch()
    assert cached_sizes("bloodmnist", cache) == (64,)


@pytest.mark.parametrize(
    ("size", "source"), [(1, 28), (28, 28), (29, 64), (96, 128), (224, 224), (512, 224)]
)
def test_a_size_comes_from_the_next_larger_published_one(size: int, source: int) -> None:
    assert lookup("pathmnist").source_size(size) == source


def test_unknown_flags_name_the_closest() -> None:
    with pytest.raises(ConfigError, match="bloodmnist"):
        lookup("blodmnist")
    with pytest.raises(ConfigError, match="organamnist"):
        lookup("organmnist3d")
