"""Commands that are killed at random moments: no file is ever half, and the end is the same.

`MEDDUET_KILLS=25 pytest -n 0 --slow all tests/faults/test_kills.py` kills each command more often.
Every process is forked from one that has imported everything, so that kills hit the work and not
the imports. All processes of a command are killed at once, as when a machine goes down.
"""

import csv
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
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
TIMED = ("lock", "cost.csv", "cost.md", "cost.tex", "report.html", "index.html")
"""Files that tell how long something took; pages are made of other files."""
CLOCKS = ("seconds", "images_per_second", "peak_memory_gb")

SERVER = """
import json, os, signal, sys, time, traceback
import medduet, medduet.experiments.run, medduet.inference.folder
import medduet.inference.export, medduet.evaluation.evaluate
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
        except BaseException:
            traceback.print_exc()
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs commands in processes that it forks, and kills them after a while."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    def run(words: list[str], cache: Path, after: float | None = None) -> dict[str, Any]:
        env = {"MEDDUET_CACHE": str(cache)}
        asked = {"words": words, "env": env, "after": after, "log": str(log)}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        done: dict[str, Any] = json.loads(process.stdout.readline())
        assert done["killed"] or done["code"] == 0, log.read_text()[-2000:]
        return done

    yield run
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def inputs(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a grid, a folder of images with masks, and a set in an archive."""
    folder, arrays = tmp_path_factory.mktemp("inputs"), {}
    config = make_config(folder / "never", train={"epochs": 3, "augment": "flip"})
    (folder / "recipe.yaml").write_text(config.model_dump_json(exclude={"out"}))
    short = make_config(folder, train={"epochs": 1}).model_dump(mode="json", exclude={"out"})
    (folder / "grid.yaml").write_text(json.dumps({"seeds": [0, 1], "run": short}))
    data = open_images("phantom", size=24, count=60)
    for number in range(24):
        path = folder / "images" / data.class_names[data.train.labels[number]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.train.images[number]).save(path)
    for split in ("train", "val", "test"):
        part = data.split(split)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = part.images, part.labels
        arrays[f"{split}_masks"] = part.masks
    np.savez(folder / "set.npz", **arrays)
    return folder


COMMANDS = {
    "train": "train {inputs}/recipe.yaml --out {out}/run",
    "evaluate": "evaluate {run} --split all --out {out}/evaluation",
    "benchmark": "benchmark {inputs}/grid.yaml --out {out}/grid",
    "unpack": "audit {inputs}/set.npz --size 16 --out {out}/audit",
    "convert": "audit {inputs}/images --size 16 --out {out}/audit",
    "zarr": "zarr {inputs}/set.npz --out {out}/set.zarr --shard-mb 0.01",
    "export": "export {run} --out {out}/exported",
    "calibrate": "calibrate {run} --data phantom --size 16 --out {out}/bundle",
    "predict": "predict {run} {inputs}/images --out {out}/said --batch-size 2",
}


MADE = {"zarr": "set.zarr/zarr.json", "export": "exported", "calibrate": "bundle"}
"""What is all there as soon as it is there, and then not written again."""


def is_done(name: str, out: Path) -> bool:
    is_there = name in MADE and (out / MADE[name]).exists()
    return is_there and not (out / "set.zarr/plan.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.timeout(0 if KILLS > 10 else 300)
def test_killed_at_random_moments(
    server: Callable[..., dict[str, Any]],
    inputs: Path,
    finished_run: RunRecord,
    tmp_path: Path,
    name: str,
) -> None:
    def run(out: Path, after: float | None = None) -> dict[str, Any]:
        words = COMMANDS[name].format(inputs=inputs, run=finished_run.path, out=out).split()
        if name == "train" and (out / "run" / "config.json").is_file():
            words = ["train", "--resume", str(out / "run")]
        return server(words, out / "cache", after)

    whole, chance, kills = tmp_path / "whole", random.Random(f"{name} {SEED}"), 0
    whole.mkdir()
    seconds, expected = run(whole)["seconds"], content(whole)
    assert expected
    while kills < KILLS:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        for _ in range(chance.choice((1, 1, 2, 4))):
            if not is_done(name, out):
                kills += run(out, chance.uniform(0, 1.02 * seconds))["killed"]
                assert_whole(out)
        if not is_done(name, out):
            run(out)
        assert content(out) == expected
        # Where only one process can write, nothing is left of those that were killed.
        own = [path for path in out.rglob(".*.tmp") if path.relative_to(out).parts[0] != "cache"]
        assert not own or name in ("evaluate", "unpack", "convert", "zarr")


def visible(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
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
