"""Grids that are run, killed, shared and wrong."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import medduet
from medduet import ConfigError, Interrupted, benchmark
from medduet.cli import main
from medduet.experiments.cells import GridFolder, run_cell
from medduet.experiments.config import GridConfig
from medduet.utils.locks import exclusive, is_held

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[str]]
NETWORKS = {"networks": ["vovunet_var", "unet_var"]}
FIRST, SECOND = "phantom-vovunet_var-seed0", "phantom-vovunet_var-seed1"


@pytest.fixture
def command(medduet_command: list[str]) -> Start:
    """Start ``medduet benchmark`` as a process."""

    def start(config: GridConfig, *words: str) -> subprocess.Popen[str]:
        assert config.out is not None
        recipe = config.out.with_suffix(".yaml")
        recipe.write_text(config.model_dump_json(exclude={"out"}))
        words = ("benchmark", str(recipe), "--out", str(config.out), *words)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*medduet_command, *words], stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    return start


def changed(grid: GridConfig, **train: Any) -> GridConfig:
    run = grid.run.model_copy(update={"train": grid.run.train.model_copy(update=train)})
    return grid.model_copy(update={"run": run})


def kill_cells(grids: SimpleNamespace, out: Path) -> None:
    for process in grids.cells_of(out):
        os.kill(process, signal.SIGKILL)


def test_a_killed_grid_goes_on_and_ends_the_same(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path, command: Start
) -> None:
    assert grids.starts(uninterrupted) == dict.fromkeys(grids.results(uninterrupted), 1)
    out = tmp_path / "grid"
    grid = grids.small(out, **NETWORKS)
    process = command(grid)
    grids.wait_until((out / "runs" / SECOND / "epochs.jsonl").is_file)
    process.kill()
    kill_cells(grids, out)
    process.communicate()
    assert len(grids.results(out)) < 4
    grids.wait_until(lambda: not grids.cells_of(out))
    second = command(grid)
    text = second.communicate(timeout=240)[0]
    assert second.returncode == 0, text
    assert grids.results(out) == grids.results(uninterrupted)
    assert (grids.starts(out)[FIRST], grids.starts(out)[SECOND]) == (1, 2)
    assert main(["report", str(uninterrupted), "--out", str(tmp_path / "report")]) == 0
    for name in ("accuracy", "dice", "paired-phantom"):
        tables = [folder / "report" / "tables" / f"{name}.csv" for folder in (out, tmp_path)]
        assert tables[0].read_text() == tables[1].read_text()


def test_without_their_parent_cells_save_and_end(
    grids: SimpleNamespace, tmp_path: Path, command: Start
) -> None:
    out, folder = tmp_path / "grid", GridFolder(tmp_path / "grid")
    process = command(changed(grids.small(out, seeds=[0]), epochs=10_000))
    grids.wait_until((out / "runs" / FIRST / "epochs.jsonl").is_file)
    assert is_held(folder.file(FIRST, "lock"))
    process.kill()
    process.communicate()
    grids.wait_until(lambda: not grids.cells_of(out))
    assert folder.state(FIRST).state == "waiting"
    assert folder.run(FIRST).checkpoint("last").is_file()


def test_two_processes_and_four_workers_run_no_cell_twice(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path, command: Start
) -> None:
    out = tmp_path / "grid"
    both = [command(grids.small(out, **NETWORKS), "--workers", "2") for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert grids.results(out) == grids.results(uninterrupted)
    assert grids.starts(out) == dict.fromkeys(grids.results(uninterrupted), 1)
    assert all("4 of 4 cells finished" in text for text in said)


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    grids: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "grid"
    networks = {"vovunet_var": {}, "timm:resnet18": {"model.width": 4}}
    datasets: dict[str, Any] = {"phantom": {}, "missing.npz": {"data.count": None}}
    record = benchmark(grids.small(out, datasets=datasets, networks=networks, seeds=[0]))
    failed, missing = "phantom-timm-resnet18-seed0", "missing-vovunet_var-seed0"
    states = {name: state.state for name, state in record.states.items()}
    expected = dict.fromkeys((failed, missing, "missing-timm-resnet18-seed0"), "failed")
    assert states == {FIRST: "finished"} | expected
    assert "missing.npz" in record.states[missing].error
    assert "width" in record.states[failed].error
    assert f"Failed: {failed}" in medduet.write_report([out]).read_text()
    before = grids.starts(out)
    assert benchmark(resume=out).count("failed") == 3
    assert grids.starts(out) == before
    assert benchmark(resume=out, retry_failed=True).count("failed") == 3
    assert grids.starts(out) == before | dict.fromkeys(expected, 2)


def test_a_cell_whose_process_is_killed_has_failed(grids: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "grid"

    def watch(states: Any) -> None:
        if states[FIRST].state == "running":
            kill_cells(grids, out)

    record = benchmark(grids.small(out), watch=watch)
    first, second = record.states.values()
    assert (first.state, second.state) == ("failed", "finished")
    assert "killed by signal 9 (out of memory?)" in first.error
    assert benchmark(resume=out, retry_failed=True).count("finished") == 2


def test_a_grid_stops_when_it_is_asked(grids: SimpleNamespace, tmp_path: Path) -> None:
    out, stop = tmp_path / "grid", threading.Event()

    def watch(states: Any) -> None:
        if states[FIRST].epochs:
            stop.set()

    with pytest.raises(Interrupted, match="medduet benchmark --resume"):
        benchmark(changed(grids.small(out), epochs=10_000), watch=watch, stop=stop)
    assert not grids.cells_of(out)


def test_more_seeds_are_added_and_other_settings_refused(
    grids: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "grid"
    benchmark(grids.small(out, seeds=[0]))
    for _ in range(2):
        assert benchmark(changed(grids.small(out), device="cpu")).count("finished") == 2
        assert grids.starts(out) == {FIRST: 1, SECOND: 1}
    with pytest.raises(ConfigError, match=r"was made with train\.epochs 3, but the grid has 4"):
        benchmark(changed(grids.small(out), epochs=4))


def test_a_held_cell_is_left_alone_and_a_defect_recorded(
    grids: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (cell, _) = GridFolder(tmp_path), grids.small(tmp_path).cells(tmp_path)
    with exclusive(folder.file(cell.name, "lock")):
        assert folder.state(cell.name).state == "running"
        assert run_cell(folder, cell) == "busy"
    assert folder.state(cell.name).state == "waiting"

    def broken(*arguments: object, **options: object) -> None:
        raise IndexError("out of\nrange")

    monkeypatch.setattr("medduet.experiments.run.train", broken)
    assert run_cell(folder, cell) == "failed"
    assert folder.state(cell.name).error == "IndexError: out of range"
    assert "in broken" in folder.file(cell.name, "json").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "expected a recipe after 'benchmark': cross, medmnist, paper, quick, tasks"),
        ("quik", "unknown recipe 'quik': did you mean quick?"),
        ("tasks", "the grid has no data"),
        ("quick --data x.npz", "data.name is set by the datasets of the grid"),
        ("quick --seed 3", "train.seed is set by the seeds of the grid, not for all"),
        ("tasks --data x.npz --tasks segment", "tasks is set by the variants of the"),
        ("quick --variants x", "unknown variant x"),
        ("--resume", "expected one folder: medduet benchmark --resume GRID"),
        ("--resume nowhere", "nowhere has no grid.json"),
    ],
)
def test_mistakes_on_the_command_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *words.split()]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_what_starts_cells_asks_for_no_gpu(python_command: list[str]) -> None:
    """A process that has asked CUDA for its GPUs can't make copies of itself that use them."""
    script = (
        "import torch\n"
        "def asked(): raise AssertionError('asked for the GPUs')\n"
        "torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = asked\n"
        "import importlib, medduet.experiments.cells as local\n"
        "for name in local._PRELOADED: importlib.import_module(name)\n"
    )
    done = subprocess.run([*python_command, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
