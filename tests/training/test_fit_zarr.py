"""Training on a zarr store of a server: stopped, cut off, resumed, and against the array itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import medduet
from medduet import RunConfig
from medduet.data import download
from medduet.data.zarr_store import write_zarr
from medduet.errors import DownloadError
from medduet.training.state import load_checkpoint
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]
SIZE = 16
LONG = {
    "train": {"epochs": 4, "augment": "strong", "grad_clip": 1.0},
    "evaluate": {"select": "mse"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images of train in nine shards; a batch of 8 takes from three of them or more."""
    source = medduet.open_images("phantom", size=SIZE, count=64)
    out = tmp_path_factory.mktemp("zarr") / "set.zarr"
    return write_zarr(source, out, shard_mb=5 * SIZE * SIZE / 1e6)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)


def on(url: str, cache: Path) -> dict[str, Any]:
    # Few shards are kept, so that each epoch reads all of them anew.
    return {"name": url, "size": None, "count": None, "cache": str(cache), "cache_gb": 0}


def test_a_run_that_was_stopped_and_cut_off_ends_the_same(
    make_config: MakeConfig,
    stop_after: Any,
    listen_at: Any,
    folder: Path,
    tmp_path: Path,
    serve: Callable[[Path], Any],
) -> None:
    server = serve(folder.parent)
    data = on(f"{server.address}/set.zarr", tmp_path / "cache")
    whole = medduet.train(make_config(tmp_path / "whole", data=data, **LONG)).path
    run = tmp_path / "run"
    stop_after(3, make_config(run, data=data | {"cache": str(tmp_path / "other")}, **LONG))

    def die() -> None:
        server.dead = True

    server.asked.clear()
    with pytest.raises(DownloadError, match=f"answered 503 .* medduet train --resume {run}"):
        medduet.train(resume=run, reporter=listen_at(4, die))
    assert any("train/images/c" in name for name in server.asked)
    progress = load_checkpoint(run / "checkpoints" / "last.pt")["progress"]
    steps = (progress["epoch"] - 1) * 6 + progress["step"]
    assert steps >= 3 + 4, "the steps before the server died are kept"
    assert progress["step"] > 0, "it died in the middle of an epoch"
    server.dead = False
    assert medduet.train(resume=run).path == run
    weights = [load_file(path / "bundle" / "model.safetensors") for path in (run, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert read_json(run / "metrics.json") == read_json(whole / "metrics.json")


def test_shards_are_the_array_in_another_order(make_config: MakeConfig, tmp_path: Path) -> None:
    """One step of all images is the same sum, so the order is the only difference."""
    source = medduet.open_images("phantom", size=SIZE, count=40)
    out = write_zarr(source, tmp_path / "set.zarr", shard_mb=5 * SIZE * SIZE / 1e6)
    train = {"epochs": 3, "batch_size": 28}
    rows = []
    for name, data in (("array", {}), ("shards", on(str(out), tmp_path / "cache"))):
        config = make_config(tmp_path / name, data=data, train=train)
        path = medduet.train(config).path / "epochs.jsonl"
        rows.append([json.loads(line)["train"]["loss"] for line in path.read_text().splitlines()])
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    assert rows[0][0] > rows[0][-1]
