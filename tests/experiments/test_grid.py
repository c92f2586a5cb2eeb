"""Grids that are run, killed, shared and wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import medduet
from medduet import ConfigError, GridRecord, Interrupted, benchmark
from medduet.cli import main
from medduet.experiments.cells import CellState, GridFolder, run_cell
from medduet.experiments.config import GridConfig
from medduet.utils.locks import exclusive, is_held

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[str]]
NETWORKS = {"networks": ["vovunet_var", "unet_var"]}


@pytest.fixture
def command(medduet_command: list[str]) -> Callable[..., subprocess.Popen[str]]:
    """Start ``medduet benchmark`` as a process."""
    return partial(start, medduet_command)


def start(command: list[str], recipe: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "benchmark", str(recipe), "--out", str(out), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def write_recipe(path: Path, config: GridConfig) -> Path:
    path.write_text(
        yaml.safe_dump(config.model_dump(mode="json", exclude={"out"}), sort_keys=False)
    )
    return path


def test_every_cell_is_a_run_as_train_makes_it(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path
) -> None:
    assert grids.starts(uninterrupted) == dict.fromkeys(grids.results(uninterrupted), 1)
    cell = grids.small(tmp_path, **NETWORKS).cells(tmp_path)[3]
    medduet.train(cell.run)
    assert grids.results(tmp_path)[cell.name] == grids.results(uninterrupted)[cell.name]


def test_a_killed_grid_goes_on_and_ends_the_same(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path, command: Start
) -> None:
    out = tmp_path / "grid"
    recipe = write_recipe(tmp_path / "grid.yaml", grids.small(out, **NETWORKS))
    process = command(recipe, out)
    lines = out / "runs" / "phantom-vovunet_var-seed1" / "epochs.jsonl"
    grids.wait_until(lines.is_file)
    process.kill()
    for child in grids.cells_of(out):
        os.kill(child, signal.SIGKILL)
    process.communicate()
    assert len(grids.results(out)) < 4
    grids.wait_until(lambda: not grids.cells_of(out))
    second = command(recipe, out)
    text = second.communicate(timeout=240)[0]
    assert second.returncode == 0, text
    assert grids.results(out) == grids.results(uninterrupted)
    assert grids.starts(out)["phantom-vovunet_var-seed0"] == 1
    assert grids.starts(out)["phantom-vovunet_var-seed1"] == 2
    assert main(["report", str(uninterrupted), "--out", str(tmp_path / "report")]) == 0
    for name in ("accuracy", "dice", "paired-phantom"):
        tables = [folder / "report" / "tables" / f"{name}.csv" for folder in (out, tmp_path)]
        assert tables[0].read_text() == tables[1].read_text()


def test_without_their_parent_cells_save_and_end(
    grids: SimpleNamespace, tmp_path: Path, command: Start
) -> None:
    out = tmp_path / "grid"
    long = grids.small(out, seeds=[0]).model_dump(mode="json")
    long["run"]["train"]["epochs"] = 10_000
    recipe = write_recipe(tmp_path / "grid.yaml", medduet.GridConfig.model_validate(long))
    process = command(recipe, out)
    grids.wait_until((out / "runs" / "phantom-vovunet_var-seed0" / "epochs.jsonl").is_file)
    assert is_held(out / "cells" / "phantom-vovunet_var-seed0.lock")
    process.kill()
    process.communicate()
    grids.wait_until(lambda: not grids.cells_of(out))
    folder = GridFolder(out)
    assert folder.state("phantom-vovunet_var-seed0").state == "waiting"
    assert folder.run("phantom-vovunet_var-seed0").checkpoint("last").is_file()


def test_cells_that_are_terminated_save_and_go_on(grids: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    long = grids.small(out, seeds=[0]).model_dump(mode="json")
    long["run"]["train"]["epochs"] = 12
    asked: list[int] = []

    def watch(states: Any) -> None:
        if states["phantom-vovunet_var-seed0"].epochs and not asked:
            asked.extend(grids.cells_of(out))
            for process in asked:
                os.kill(process, signal.SIGTERM)

    record = benchmark(medduet.GridConfig.model_validate(long), watch=watch)
    assert record.count("finished") == 1, record.states
    assert asked
    assert grids.starts(out) == {"phantom-vovunet_var-seed0": 2}


def test_two_processes_and_four_workers_run_no_cell_twice(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path, command: Start
) -> None:
    out = tmp_path / "grid"
    recipe = write_recipe(tmp_path / "grid.yaml", grids.small(out, **NETWORKS))
    both = [command(recipe, out, "--workers", "2") for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert grids.results(out) == grids.results(uninterrupted)
    assert grids.starts(out) == dict.fromkeys(grids.results(uninterrupted), 1)
    assert all("4 of 4 cells finished" in text for text in said)


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    grids: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "grid"
    grid = grids.small(
        out,
        datasets={"phantom": {}, "missing.npz": {}},
        networks={"vovunet_var": {}, "timm:resnet18": {"model.width": 4}},
        seeds=[0],
    )
    record = benchmark(grid)
    states = {name: state.state for name, state in record.states.items()}
    assert states == {
        "phantom-vovunet_var-seed0": "finished",
        "phantom-timm-resnet18-seed0": "failed",
        "missing-vovunet_var-seed0": "failed",
        "missing-timm-resnet18-seed0": "failed",
    }
    error = record.states["missing-vovunet_var-seed0"].error
    assert "missing.npz" in error
    assert "\n" not in error
    assert "width" in record.states["phantom-timm-resnet18-seed0"].error
    page = medduet.write_report([out]).read_text()
    assert "Failed: phantom-timm-resnet18-seed0" in page
    before = grids.starts(out)
    assert benchmark(resume=out).count("failed") == 3
    assert grids.starts(out) == before
    again = benchmark(resume=out, retry_failed=True)
    assert again.count("failed") == 3
    assert grids.starts(out)["missing-vovunet_var-seed0"] == 2
    assert grids.starts(out)["phantom-vovunet_var-seed0"] == 1


def test_a_cell_whose_process_is_killed_has_failed(grids: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    grid = grids.small(out)

    def watch(states: Any) -> None:
        if states["phantom-vovunet_var-seed0"].state == "running":
            for child in grids.cells_of(out):
                os.kill(child, signal.SIGKILL)

    record = benchmark(grid, watch=watch)
    first, second = record.states.values()
    assert (first.state, second.state) == ("failed", "finished")
    assert "killed by signal 9 (out of memory?)" in first.error
    assert benchmark(resume=out, retry_failed=True).count("finished") == 2


def test_a_grid_stops_when_it_is_asked(grids: SimpleNamespace, tmp_path: Path) -> None:
    out, stop = tmp_path / "grid", threading.Event()
    grid = grids.small(out)

    def watch(states: dict[str, CellState]) -> None:
        if states["phantom-vovunet_var-seed0"].epochs:
            stop.set()

    long = grid.model_dump(mode="json")
    long["run"]["train"]["epochs"] = 10_000
    with pytest.raises(Interrupted, match="medduet benchmark --resume"):
        benchmark(medduet.GridConfig.model_validate(long), watch=watch, stop=stop)
    assert not grids.cells_of(out)


def test_more_seeds_are_added_and_other_settings_refused(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "grid"
    benchmark(grids.small(out, seeds=[0]))
    record = benchmark(grids.small(out, seeds=[0, 1]))
    assert isinstance(record, GridRecord)
    assert set(grids.starts(out).values()) == {1}
    elsewhere = grids.small(out).model_dump(mode="json")
    elsewhere["run"]["train"]["device"] = "cpu"
    elsewhere["run"]["data"]["cache"] = str(tmp_path)
    assert benchmark(medduet.GridConfig.model_validate(elsewhere)).count("finished") == 2
    assert set(grids.starts(out).values()) == {1}
    other = grids.small(out).model_dump(mode="json")
    other["run"]["train"]["epochs"] = 4
    with pytest.raises(ConfigError, match=r"was made with train\.epochs 3, but the grid has 4"):
        benchmark(medduet.GridConfig.model_validate(other))
    assert (out / "runs" / "phantom-vovunet_var-seed1" / "metrics.json").is_file()


def test_a_held_cell_is_left_alone(grids: SimpleNamespace, tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    cell = grids.small(tmp_path).cells(tmp_path)[0]
    with exclusive(folder.file(cell.name, "lock")) as alone:
        assert alone
        assert folder.busy(cell.name)
        assert folder.state(cell.name).state == "running"
        assert run_cell(folder, cell) == "busy"
    assert not folder.busy(cell.name)
    assert folder.state(cell.name).state == "waiting"


def test_a_defect_is_recorded_with_its_traceback(
    grids: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = GridFolder(tmp_path)
    cell = grids.small(tmp_path).cells(tmp_path)[0]

    def broken(*arguments: object, **options: object) -> None:
        raise IndexError("out of\nrange")

    monkeypatch.setattr("medduet.experiments.run.train", broken)
    assert run_cell(folder, cell) == "failed"
    record = json.loads(folder.file(cell.name, "json").read_text())
    assert record["error"] == "IndexError: out of range"
    assert "in broken" in record["details"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a recipe (balance, cross, paper, quick, tasks"),
        (["quik"], "unknown recipe 'quik': did you mean quick?"),
        (["tasks"], "the grid has no data"),
        (["tasks", "--datasets", "x.npz", "--seeds"], "seeds"),
        (["quick", "--data", "x.npz"], "data.name is set by the datasets of the grid"),
        (
            ["quick", "--seed", "3"],
            "train.seed is set by the seeds of the grid, not for all",
        ),
        (["tasks", "--data", "x.npz", "--tasks", "segment"], "tasks is set by the variants of the"),
        (["quick", "--variants", "x"], "unknown variant x"),
        (["--resume"], "expected one folder: medduet benchmark --resume GRID"),
        (["--resume", "nowhere"], "nowhere has no grid.json"),
        (["--resume", "nowhere", "--seeds", "1"], "--seeds"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *words]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_what_starts_cells_asks_for_no_gpu(python_command: list[str]) -> None:
    """A process that has asked CUDA for its GPUs can't make copies of itself that use them."""
    script = (
        "import torch\n"
        "def asked(): raise AssertionError('asked for the GPUs')\n"
        "torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = asked\n"
        "import importlib, medduet.experiments.local as local\n"
        "for name in local._PRELOADED: importlib.import_module(name)\n"
    )
    done = subprocess.run([*python_command, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
