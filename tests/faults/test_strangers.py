"""Folders, names and tables of strangers: nothing is written elsewhere, shown raw, or a formula."""

import contextlib
import csv
import io
import os
import pwd
import re
import resource
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medduet
from medduet import DataError, ModelError, RunRecord
from medduet.cli import main
from medduet.cli.screen import Screen
from medduet.data.splits import read_split, write_split
from medduet.errors import StorageError
from medduet.experiments.config import read_grid
from medduet.models.weights import save_network
from medduet.runs.config import BundleConfig
from medduet.runs.folder import RunFolder
from medduet.runs.predictions import Predictions
from medduet.training.state import save_checkpoint
from medduet.utils.files import write_json
from medduet.utils.parsing import csv_text

Capture = pytest.CaptureFixture[str]
PLACES = {
    "predict {run} {images} --out {out}": ".lock done.jsonl settings.json masks masks/a.png",
    "train --resume {run}": "checkpoints checkpoints/lock predictions bundle",
    "evaluate {run}": "evaluations evaluations/phantom-test evaluations/phantom-test/x",
    "evaluate {run} --out {out}": "predictions",
    "stress {run} --corruptions brightness_up": "stress stress/phantom-test/tables",
    "report {run}": "report report/.lock report/figures",
    "report {run} --out {out}": ".lock tables",
    "benchmark --resume {run}": "runs cells cells/a.log",
}
LINKS = [(words, name) for words, names in PLACES.items() for name in names.split()]
FORMULAS = ["=1+1", "'=1", "''-x", "-1", "+a.png", "@x", "a;=b", "\tx", "\rx", "'x", "＝1", "-1+'!"]
REFUSED = {
    "datasets": "set MEDDUET_CACHE",
    "audit ~nobody/x.npz": "without ~",
    "compare {run} {run}/x": "a file at .*metrics.json, but there is none",
    "audit {run}/set.zarr": "set.zarr/zarr.json is missing",
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(24):
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def run(finished_run: RunRecord, tmp_path: Path) -> Path:
    """A copy, which is also the folder of a grid."""
    path = Path(shutil.copytree(finished_run.path, tmp_path / "run"))
    write_json(path / "grid.json", {"run": {"data": {"name": "phantom"}}})
    return path


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(("words", "name"), LINKS)
def test_nothing_is_written_through_a_link(
    run: Path, images: Path, capsys: Capture, words: str, name: str, kind: str
) -> None:
    place = (run.parent / "out" if "{out}" in words else run) / name
    old = run.parent / "elsewhere" / "old"
    write_json(old, 1)
    if "train" in words:
        (run / "metrics.json").unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(old if "lock" in name else old.parent / ("new" * ("." in name)))
    assert main(words.format(run=run, images=images, out=run.parent / "out").split()) == 2
    assert capsys.readouterr().err.endswith(f"remove {place}\n")
    assert ([*old.parent.iterdir()], old.read_text()) == ([old], "1\n")


def test_the_folder_itself_may_be_a_link(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "real").mkdir(parents=True)
    (tmp_path / "disk").symlink_to(tmp_path / "scratch")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    for _ in range(2):
        assert medduet.predict_files(run, [images], tmp_path / "out").images == 24
    assert (tmp_path / "scratch" / "real" / "masks" / "0" / "0.png").is_file()


def test_a_folder_does_not_choose_the_cache(run: Path, capsys: Capture) -> None:
    config = RunFolder(run).run_config().model_dump(mode="json")
    config["data"] |= {"cache": "/elsewhere", "cache_gb": 3}
    write_json(run / "config.json", config)
    data = RunFolder(run).run_config().data
    assert (data.cache, data.cache_gb) == (None, 3)
    grid = {"run": {"data": config["data"]}, "variants": {"a": {"data.cache": "/elsewhere"}}}
    write_json(run / "grid.json", grid)
    assert read_grid(run).run.data.cache is None
    assert main(["benchmark", "--resume", str(run)]) == 2
    assert "unknown setting data.cache" in capsys.readouterr().err


def test_names_have_no_codes_for_the_terminal(images: Path, capsys: Capture) -> None:
    hostile = "\x1b[31mX\u202e\x07\x9b"
    for path in (*images.glob("*/*.png"), *images.glob("*"), images):
        path.rename(path.with_name(f"{path.stem}{hostile}{path.suffix}"))
    data, out = images.with_name(f"images{hostile}"), images.with_name(f"run{hostile}")
    (data / f"0{hostile}" / f"broken{hostile}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    recipe = images.with_name("recipe.yaml")
    recipe.write_text('data: {name: "\\e[31mX\\u202e"}\nmodel: {name: "\\e[2J"}\n')
    few = "--data.skip-broken --model.width 2 --epochs 1"
    for words in (
        ["audit", data, "--data.skip-broken", "--out", images.with_name("audit")],
        ["train", "auto", "--data", data, "--out", out, *few.split()],
        ["predict", out, data, "--out", images.with_name("out")],
        ["train", recipe, "--help"],
    ):
        with contextlib.suppress(SystemExit):  # of the help
            assert main([*map(str, words)]) == 0, words
        shown = "".join(capsys.readouterr())
        assert "?[31mX" in shown
        assert not {x for x in shown if unicodedata.category(x) in ("Cc", "Cf")} - {"\n"}, words
    for text in ("\n", "\x1b[A", "\r50% \x1b[A\r", "\r"):  # bars move the cursor by some alone
        Screen(sys.stdout).write(text)
    assert capsys.readouterr().out == "\n\x1b[A\r50% ?[A\r\r"


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    text = f"{sys.executable} -m medduet datasets > /dev/full"
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_system_refuses_is_one_line(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    for pipe in ("set.zarr/zarr.json", "metrics.json"):
        (run / pipe).parent.mkdir(exist_ok=True)
        (run / pipe).unlink(missing_ok=True)
        os.mkfifo(run / pipe)
    for name in ("HOME", "MEDDUET_CACHE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # no such user, as in a container
    assert main(words.format(run=run).split(" ")) == 2
    assert re.fullmatch(f"medduet: .*{REFUSED[words]}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("writer", [save_network, save_checkpoint])
def test_a_limit_of_file_sizes_is_like_a_full_disk(tmp_path: Path, writer: Any) -> None:
    network = medduet.create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
    is_torch = writer is save_checkpoint
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large: make room"):
            writer(tmp_path / ("a" * is_torch), network.state_dict() if is_torch else network)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_names_are_no_formulas_and_come_back(tmp_path: Path) -> None:
    numbers, path = np.arange(len(FORMULAS)) - 2.5, tmp_path / "test.csv"
    Predictions(np.arange(len(FORMULAS)), ids=np.array(FORMULAS), mse=numbers).to_csv(path)
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert [x["image"] for x in rows if re.match("[-=+@\t\r＝]", x["image"])] == ["-1"]
    assert [float(row["mse"]) for row in rows] == numbers.tolist()
    assert Predictions.from_csv(path).ids.tolist() == FORMULAS
    images = medduet.open_images("phantom", size=16, count=20)
    named = replace(images, train=replace(images.train, ids=np.array([*FORMULAS, "a", "b"])))
    write_split(path, named)
    assert read_split(path, named).tolist() == [0] * 14 + [1] * 2 + [2] * 4
    table = pd.DataFrame({"a": [1, None, 2, "=x"], "b": [1, None, 2, 3]}, dtype=object)
    assert csv_text(table) == "a,b\n1,1\n,\n2,2\n'=x,3\n"


@pytest.mark.parametrize("names", [["a", "a"], [f"class {n}" for n in range(10_001)]])
def test_classes_have_different_names_and_not_too_many(tmp_path: Path, names: list[str]) -> None:
    images = medduet.open_images("phantom", size=16, count=20)
    with pytest.raises(DataError, match="up to 10,000 different names"):
        replace(images, class_names=tuple(names))
    network = {"name": "vovunet_var", "in_channels": 1, "num_classes": len(names)}
    with pytest.raises(ModelError, match=r"different names|at most 10000"):
        BundleConfig.check({"network": network, "class_names": names}, tmp_path)


def test_recipes_and_tables_have_limits(tmp_path: Path, capsys: Capture) -> None:
    lines = ["a0: &a0 [1, 2]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    for text in ("\n".join(lines), f"# {'x' * 70_000}"):
        (tmp_path / "recipe.yaml").write_text(text)
        assert main(["benchmark", str(tmp_path / "recipe.yaml")]) == 2
        assert "at most 64 KB and 16 aliases" in capsys.readouterr().err
    (tmp_path / "test.csv").write_text("index" + ",a" * 40_000 + "\n")
    with pytest.raises(DataError, match="more than 32,768 columns"):
        Predictions.from_csv(tmp_path / "test.csv")
