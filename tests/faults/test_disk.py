"""A disk that is full or read-only, and a second process on the same run."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import medduet
from medduet import ConfigError, RunConfig, RunRecord
from medduet.cli import main
from medduet.errors import StorageError
from medduet.training.reporter import Reporter
from medduet.training.state import load_checkpoint
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]
SETTINGS = {"train": {"augment": "flip"}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of that size in memory, or change its options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this user can't mount a file system: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def same_weights(one: Path, other: Path) -> bool:
    left, right = (load_file(run / "bundle" / "model.safetensors") for run in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


class Filler(Reporter):
    """Fills a disk but for some bytes when an epoch is done."""

    def __init__(self, folder: Path, epoch: int, leave: int) -> None:
        self.folder, self.epoch, self.leave = folder, epoch, leave

    def end_epoch(self, row: Any) -> None:
        if row["epoch"] == self.epoch:
            free = shutil.disk_usage(self.folder).free
            with (self.folder / "filler").open("wb") as file:
                file.write(bytes(free - self.leave))


@pytest.fixture(scope="module")
def whole(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    return medduet.train(make_config(tmp_path_factory.mktemp("whole") / "run", **SETTINGS)).path


# At the first checkpoint, in the middle of the second, and at the files at the end of the run.
@pytest.mark.parametrize(("epoch", "leave"), [(1, 0), (1, 40_000), (2, 60_000), (2, 200_000)])
def test_a_full_disk_while_training(
    disk: Callable[[str], Path], make_config: MakeConfig, whole: Path, epoch: int, leave: int
) -> None:
    place = disk("size=8m")
    run = place / "run"
    with pytest.raises(StorageError, match="the disk is full: make room") as told:
        medduet.train(make_config(run, **SETTINGS), reporter=Filler(place, epoch, leave))
    assert f"go on with: medduet train --resume {run}" in str(told.value)
    assert "\n" not in str(told.value)
    assert load_checkpoint(run / "checkpoints" / "last.pt")["progress"]["epoch"] == epoch + 1
    assert list(run.rglob(".*.tmp")) == []
    # Still full: nothing gets worse.
    with pytest.raises(StorageError):
        medduet.train(resume=run)
    (place / "filler").unlink()
    medduet.train(resume=run)
    assert same_weights(run, whole)
    assert read_json(run / "metrics.json") == read_json(whole / "metrics.json")


COMMANDS = {
    "predict": "predict {run} {images} --out {disk}/said",
    "evaluate": "evaluate {run} --split all --out {disk}/judged",
    "export": "export {run} --out {disk}/exported",
    "report": "report {run} --out {disk}/report",
    "train": "train {recipe} --out {disk}/run",
}


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_what_is_wrong_with_the_disk(
    disk: Callable[[str], Path],
    make_config: MakeConfig,
    finished_run: RunRecord,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    fault: str,
) -> None:
    (tmp_path / "images").mkdir()
    Image.linear_gradient("L").save(tmp_path / "images" / "a.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_config(tmp_path, train={"epochs": 1}).model_dump_json(exclude={"out"}))
    place = disk("size=200k")
    if fault == "full":
        with pytest.raises(OSError, match="No space left"):
            (place / "filler").write_bytes(bytes(300 * 1024))
    else:
        disk("ro,size=200k")
    images = tmp_path / "images"
    words = COMMANDS[name].format(run=finished_run.path, images=images, disk=place, recipe=recipe)
    assert main(words.split()) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    expected = "the disk is full" if fault == "full" else "Read-only file system"
    assert line.startswith("medduet: ")
    assert expected in line
    assert str(place) in line


# A second process ---------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_name_of_the_first(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    messages: list[str] = []

    class Rival(Reporter):
        def end_epoch(self, row: Any) -> None:
            with pytest.raises(ConfigError) as caught:
                medduet.train(resume=run)
            messages.append(str(caught.value))

    medduet.train(make_config(run, train={"epochs": 1}), reporter=Rival())
    [message] = messages
    assert f"{run} is being trained by process {os.getpid()} on {os.uname().nodename}" in message
    assert read_json(run / "metrics.json")["test"]["n"] == 8
