"""Several processes: what happens when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medduet import RunConfig
from medduet.utils.parsing import read_json

pytestmark = pytest.mark.slow
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
    train = {"epochs": 2, "batch_size": 14}
    config = make_config(folder, train=train, evaluate={"batch_size": 8})
    (folder / "recipe.yaml").write_text(config.model_dump_json(exclude={"out"}))
    (folder / "program.py").write_text(PROGRAM)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def trained_by_two(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = torchrun(2, "-m", "medduet", "train", str(recipe), "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_is_started_again(
    recipe: Path, trained_by_two: Path, tmp_path: Path, victim: int
) -> None:
    run = tmp_path / "run"
    program = (str(recipe.parent / "program.py"), str(recipe), str(run), str(victim), "3")
    done = torchrun(2, *program, restarts=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(run / "metrics.json") == read_json(trained_by_two / "metrics.json")
    one, other = (
        load_file(path / "bundle" / "model.safetensors") for path in (run, trained_by_two)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_process_that_dies_ends_the_others(
    recipe: Path, trained_by_two: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    program = (str(recipe.parent / "program.py"), str(recipe), str(run), "1", "3")
    done = torchrun(2, *program)
    assert done.returncode != 0
    # It goes on by hand from the last checkpoint.
    done = torchrun(2, "-m", "medduet", "train", "--resume", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(run / "metrics.json") == read_json(trained_by_two / "metrics.json")
