"""Several processes: the same curve as one, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import medduet
from medduet import RunConfig
from medduet.errors import ConfigError
from medduet.training.sync_norm import sync_batch_norm
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]

PROGRAM = """
import os, signal, sys
from pathlib import Path
import medduet
from medduet.config import load_recipe
from medduet.training.reporter import Reporter

recipe, out, victim, at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

class Killer(Reporter):
    steps = 0
    def step(self, images, losses):
        self.steps += 1
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and self.steps == at and int(os.environ["RANK"]) == victim:
            os.kill(os.getpid(), signal.SIGKILL)

medduet.train(load_recipe(recipe).model_copy(update={"out": out}), reporter=Killer())
"""


def torchrun(processes: int, *words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*command, *options, "--monitor-interval", "0.2", *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def recipe(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    # 28 images: four processes need steps of at least 8.
    train = {"epochs": 3, "batch_size": 14, "sync_batch_norm": True, "learning_rate": 1e-3}
    config = make_config(folder, train=train, evaluate={"batch_size": 8})
    (folder / "recipe.yaml").write_text(config.model_dump_json(exclude={"out"}))
    (folder / "program.py").write_text(PROGRAM)
    return folder / "recipe.yaml"


def epochs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "epochs.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run on one, two and four processes."""
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2, 4):
        out = ("--out", str(folder / str(processes)))
        done = torchrun(processes, "-m", "medduet", "train", str(recipe), *out)
        assert done.returncode == 0, done.stderr[-3000:]
    return {processes: folder / str(processes) for processes in (1, 2, 4)}


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_trains_the_same(runs: dict[int, Path], processes: int) -> None:
    expected, found = epochs(runs[1]), epochs(runs[processes])
    for left, right in zip(found, expected, strict=True):
        for split in ("train", "val"):
            # They round in another order, which grows from step to step.
            near = pytest.approx(right[split]["loss"], rel=1e-4 if right["epoch"] == 1 else 5e-3)
            assert left[split]["loss"] == near, (split, right["epoch"])


@pytest.mark.parametrize("processes", [2, 4])
def test_every_image_is_judged_once(runs: dict[int, Path], processes: int) -> None:
    for split, images in (("val", 4), ("test", 8)):
        rows = (runs[processes] / "predictions" / f"{split}.csv").read_text("utf-8").splitlines()
        assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(images))


def test_without_it_the_statistics_of_each_process_are_its_own(
    recipe: Path, runs: dict[int, Path], tmp_path: Path
) -> None:
    text = recipe.read_text().replace('"sync_batch_norm":true', '"sync_batch_norm":false')
    (tmp_path / "recipe.yaml").write_text(text)
    words = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    assert torchrun(4, "-m", "medduet", *words).returncode == 0
    losses = [epochs(run)[0]["train"]["loss"] for run in (tmp_path / "run", runs[1])]
    assert losses[0] != pytest.approx(losses[1], rel=2e-3)


def test_a_norm_that_is_not_known_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match="does not know BatchNorm1d"):
        sync_batch_norm(network, "cpu")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_is_started_again(
    recipe: Path, runs: dict[int, Path], tmp_path: Path, victim: int
) -> None:
    run = tmp_path / "run"
    program = (str(recipe.parent / "program.py"), str(recipe), str(run), str(victim), "3")
    done = torchrun(2, *program, restarts=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(run / "metrics.json") == read_json(runs[2] / "metrics.json")
    one, other = (load_file(path / "bundle" / "model.safetensors") for path in (run, runs[2]))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_process_that_dies_ends_the_others(
    recipe: Path, runs: dict[int, Path], tmp_path: Path
) -> None:
    run, started = tmp_path / "run", time.monotonic()
    program = (str(recipe.parent / "program.py"), str(recipe), str(run), "1", "3")
    done = torchrun(2, *program)
    assert done.returncode != 0
    assert time.monotonic() - started < 120
    # It goes on by hand from the last checkpoint.
    done = torchrun(2, "-m", "medduet", "train", "--resume", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(run / "metrics.json") == read_json(runs[2] / "metrics.json")


def test_memory_that_runs_out_on_one_process(make_config: MakeConfig, tmp_path: Path) -> None:
    """It is started again, with fewer images at a time."""
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(make_config(run, train={"epochs": 1}).model_dump_json(exclude={"out"}))
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, torch, medduet, medduet.models\n"
        "from pathlib import Path\n"
        "from medduet.config import load_recipe\n"
        "plain = medduet.models.UNet.forward\n"
        "def forward(self, image):\n"
        "    if len(image) > 2 and torch.is_grad_enabled() and os.environ['RANK'] == '1':\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "    return plain(self, image)\n"
        "medduet.models.UNet.forward = forward\n"
        "out = {'out': Path(sys.argv[2])}\n"
        "medduet.train(load_recipe(sys.argv[1]).model_copy(update=out))\n"
    )
    done = torchrun(2, str(program), str(recipe), str(run), restarts=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "out of memory on process 1 with 4 images at a time" in done.stderr, done.stderr[-3000:]
    assert medduet.train(resume=run).metrics["test"]["n"] == 8
