"""Commands that are killed at random moments: no file is ever half, and the end is the same.

`MEDDUET_KILLS=25 pytest -n 0 --slow all tests/faults/test_kills.py` kills each command more often.
Every process is forked from one that has imported everything, so that kills hit the work and not
the imports. All processes of a command are killed at once, as when a machine goes down.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from medduet import RunConfig, RunRecord
from medduet.data.sources import open_images

MakeConfig = Callable[..., RunConfig]
KILLS = int(os.environ.get("MEDDUET_KILLS", "3"))
"""Of each command."""
SEED = int(os.environ.get("MEDDUET_FAULTS_SEED", "0"))
NAMES = (
    "train",
    "evaluate",
    "benchmark",
    "unpack",
    "convert",
    "zarr",
    "export",
    "calibrate",
    "predict",
)
TIMED = ("lock", "cost.csv", "cost.md", "cost.tex", "report.html", "index.html")
"""Files that tell how long something took; pages are made of other files."""
CLOCKS = ("seconds", "images_per_second", "peak_memory_gb")

SERVER = """
import json, os, signal, sys, time
import medduet, medduet.experiments.run, medduet.inference.folder
import medduet.inference.export, medduet.evaluation.calibrate
import kornia.augmentation, monai.losses, medduet.cli.display.progress, medduet.experiments.grid
import medduet.evaluation.ensemble, medduet.reports.report
from medduet.cli import main

def kill_all(first):
    # With what it started, also in sessions of their own, as when the machine loses its power.
    families, sessions, found = {first}, {first}, True
    while found:  # others may be started meanwhile
        found = False
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = open(f"/proc/{name}/stat").read().rsplit(") ", 1)[1].split()
                state, parent, session = stat[0], int(stat[1]), int(stat[3])
                if int(name) != first and parent not in families and session not in sessions:
                    continue
                if int(name) != first:  # which may not be in its own session yet
                    families.add(int(name))
                    sessions.add(session)
                os.kill(int(name), signal.SIGKILL)
                found = found or state != "Z"
            except (ProcessLookupError, FileNotFoundError):
                pass

for line in sys.stdin:
    asked = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        output = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["env"])
        code = 1
        try:
            code = main(asked["words"])
        finally:
            sys.stdout.flush()
            os._exit(code)
    killed = False
    if asked["after"] is not None:
        end = started + asked["after"]
        while time.monotonic() < end and not killed:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        else:
            killed = True
            kill_all(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps({"code": code, "seconds": time.monotonic() - started, "killed": killed}),
          flush=True)
"""


@dataclass(frozen=True)
class Done:
    code: int
    seconds: float
    killed: bool


class Server:
    """Runs commands in processes that it forks, and kills them."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __call__(self, words: list[str], env: dict[str, str], after: float | None = None) -> Done:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"words": words, "env": env, "after": after, "log": str(self.log)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.process.kill()
    server.process.communicate()


@dataclass(frozen=True)
class Command:
    """What is typed, first and to go on, with the folder that all is written to."""

    first: list[str]
    again: list[str] | None = None
    begun: str = ""  # a file, relative to the folder, from which on `again` is typed
    made: str = ""  # what is all there as soon as it is there, and then not written again
    plan: str = ""  # what is there as long as something is left to do
    env: dict[str, str] = field(default_factory=dict)

    def is_done(self, folder: Path) -> bool:
        if not self.made or (self.plan and (folder / self.plan).exists()):
            return False
        return (folder / self.made).exists()

    def words(self, folder: Path) -> list[str]:
        goes_on = self.again is not None and (folder / self.begun).is_file()
        chosen = self.again if goes_on else self.first
        assert chosen is not None
        return [word.replace("{out}", str(folder)) for word in chosen]

    def environment(self, folder: Path) -> dict[str, str]:
        return {name: value.replace("{out}", str(folder)) for name, value in self.env.items()}


@pytest.fixture(scope="module")
def inputs(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a grid, a folder of images with masks, and a set in an archive."""
    folder = tmp_path_factory.mktemp("inputs")
    config = make_config(folder / "never", train={"epochs": 3, "augment": "flip"})
    (folder / "recipe.yaml").write_text(config.model_dump_json(exclude={"out"}))
    short = make_config(folder, train={"epochs": 1}).model_dump(mode="json", exclude={"out"})
    grid = {"seeds": [0, 1], "run": short}
    (folder / "grid.yaml").write_text(json.dumps(grid))
    data = open_images("phantom", size=24, count=60)
    for number, (image, label) in enumerate(
        zip(data.train.images[:24], data.train.labels, strict=False)
    ):
        path = folder / "images" / data.class_names[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    arrays = {}
    for split in ("train", "val", "test"):
        part = data.split(split)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = part.images, part.labels
        arrays[f"{split}_masks"] = part.masks
    np.savez(folder / "set.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def commands(inputs: Path, finished_run: RunRecord) -> dict[str, Command]:
    run = str(finished_run.path)
    images, archive = str(inputs / "images"), str(inputs / "set.npz")
    cache = {"MEDDUET_CACHE": "{out}/cache"}
    return {
        "train": Command(
            ["train", str(inputs / "recipe.yaml"), "--out", "{out}/run"],
            ["train", "--resume", "{out}/run"],
            "run/config.json",
        ),
        "evaluate": Command(["evaluate", run, "--split", "all", "--out", "{out}/evaluation"]),
        "benchmark": Command(["benchmark", str(inputs / "grid.yaml"), "--out", "{out}/grid"]),
        "unpack": Command(["audit", archive, "--size", "16", "--out", "{out}/audit"], env=cache),
        "convert": Command(["audit", images, "--size", "16", "--out", "{out}/audit"], env=cache),
        "zarr": Command(
            ["zarr", archive, "--out", "{out}/set.zarr", "--shard-mb", "0.01"],
            made="set.zarr/zarr.json",
            plan="set.zarr/plan.json",
            env=cache,
        ),
        "export": Command(["export", run, "--out", "{out}/exported"], made="exported"),
        "calibrate": Command(
            ["calibrate", run, "--data", "phantom", "--size", "16", "--out", "{out}/bundle"],
            made="bundle",
        ),
        "predict": Command(["predict", run, images, "--out", "{out}/said", "--batch-size", "2"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(0 if KILLS > 10 else 300)
def test_killed_at_random_moments(
    server: Server, commands: dict[str, Command], tmp_path: Path, name: str
) -> None:
    command = commands[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    done = server(command.words(whole), command.environment(whole))
    assert done.code == 0, server.log.read_text()[-2000:]
    expected = content(whole)
    assert expected
    chance = random.Random(f"{name} {SEED}")
    kills = runs = 0
    while kills < KILLS:
        folder = tmp_path / str(runs)
        folder.mkdir()
        for _ in range(chance.choice((1, 1, 2, 4))):
            if command.is_done(folder):
                break
            after = chance.uniform(0, 1.02 * done.seconds)
            found = server(command.words(folder), command.environment(folder), after)
            assert found.killed or found.code == 0, server.log.read_text()[-2000:]
            kills += found.killed
            assert_whole(folder)
        if not command.is_done(folder):
            last = server(command.words(folder), command.environment(folder))
            assert last.code == 0, server.log.read_text()[-2000:]
        assert content(folder) == expected
        assert leftovers(folder) == []
        runs += 1


def visible(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        path
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def leftovers(folder: Path) -> list[Path]:
    """What killed processes have left, where only one process can write."""
    cleaned = ("run", "grid", "said", "exported", "bundle")
    return [
        path
        for path in folder.rglob(".*.tmp")
        if path.relative_to(folder).parts[0].lstrip(".").split(".")[0] in cleaned
    ]


def assert_whole(folder: Path) -> None:
    """Every file that can be seen is complete."""
    for path in visible(folder):
        if path.name == "done.jsonl":  # a journal, whose last line may be cut
            continue
        try:
            check(path)
        except Exception as error:
            raise AssertionError(f"{path} is not whole: {error}") from error


def check(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".jsonl":
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    elif path.suffix == ".csv":
        text = path.read_text("utf-8")
        rows = list(csv.reader(io.StringIO(text)))
        assert text.endswith("\n")
        assert len({len(row) for row in rows}) == 1
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    elif path.suffix in (".npz", ".pt2", ".zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".npy":
        np.load(path)
    elif path.suffix in (".html", ".md", ".yaml"):
        assert path.read_text("utf-8").strip()


def content(folder: Path) -> dict[str, Any]:
    """What the files of a folder say, without clocks and the folder's own name."""
    found: dict[str, Any] = {}
    for path in visible(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".log", ".lock") or path.name in TIMED:
            continue
        if path.name == "epochs.jsonl":
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            found[name] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
        else:
            found[name] = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    return found
