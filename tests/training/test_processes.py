"""Several processes: they learn and evaluate as one does, and survive the death of one."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medduet import RunConfig
from medduet.cli import main
from medduet.data.sources import open_images
from medduet.runs.folder import RunFolder
from medduet.training.experiment import Experiment
from medduet.training.loop import fit
from medduet.utils.parsing import read_json

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]


def assert_close(found: Any, expected: Any) -> None:
    """Numbers may differ in the last digits, since other batches go through the network."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list):
        for left, right in zip(found, expected, strict=True):
            assert_close(left, right)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def recipe(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    train = {"batch_size": 14, "augment": "flip"}
    config = make_config(folder, train=train)
    (folder / "recipe.yaml").write_text(config.model_dump_json(exclude={"out"}))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def trained_by_two(
    recipe: Path, torchrun: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run on two processes; 28 images in train, 4 in val and 8 in test."""
    run = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(2, "-m", "medduet", "train", str(recipe), "--out", str(run))
    assert "Traceback" not in done.stderr
    return run


def test_two_processes_train_to_the_end(trained_by_two: Path) -> None:
    run = RunFolder(trained_by_two)
    assert run.environment["machine"]["processes"] == 2
    assert len(run.epochs) == 2
    assert not (run.path / "checkpoints").exists()
    images = open_images("phantom", size=16, count=40)
    for split, count in (("val", 4), ("test", 8)):
        predictions = run.predictions(split)
        assert predictions.index.tolist() == list(range(count))
        assert predictions.label.tolist() == images.split(split).labels.tolist()


# A process that dies ----------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
import medduet
from medduet.config import load_recipe
from medduet.training.reporter import Reporter
recipe, out, victim = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

class Killer(Reporter):
    steps = 0
    def step(self, images, losses):
        self.steps += 1
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and self.steps == 3 and os.environ["RANK"] == victim:
            os.kill(os.getpid(), signal.SIGKILL)

medduet.train(load_recipe(recipe).model_copy(update={"out": out}), reporter=Killer())
"""


@pytest.mark.parametrize(("victim", "restarts"), [(0, 2), (1, 2), (1, 0)])
def test_a_process_that_dies_changes_nothing(
    recipe: Path,
    trained_by_two: Path,
    torchrun: Callable[..., Any],
    assert_same_run: Callable[..., None],
    tmp_path: Path,
    victim: int,
    restarts: int,
) -> None:
    run, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(KILL)
    words = (str(script), str(recipe), str(run), str(victim))
    torchrun(2, *words, restarts=restarts, fails=not restarts)
    if not restarts:  # it goes on by hand from the last checkpoint
        torchrun(2, "-m", "medduet", "train", "--resume", str(run))
    assert_same_run(run, trained_by_two)


# As one -----------------------------------------------------------------------------------------

SCRIPT = """
import importlib.util, json, os, sys
from pathlib import Path
import medduet
from safetensors.torch import save_file
from medduet.cli import main
from medduet.config import RunConfig, validate
from medduet.training.fabric import launch_fabric
from medduet.training.loop import fit
file, run, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
spec = importlib.util.spec_from_file_location("conftest", file)
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
for name, words in EVALUATE.items():
    assert main(["evaluate", run, *words.split(), "--out", str(out / name)]) == 0
settings = json.loads((out / "config.json").read_text())
config = validate(RunConfig, settings, "test")
fabric = launch_fabric(config.train)
for balance in BALANCES:
    objective = settings["objective"] | {"balance": balance}
    changes = {"objective": objective, "out": str(out / balance)}
    changed = validate(RunConfig, settings | changes, "test")
    experiment = tests.plain_experiment(changed, fabric)
    fit(experiment)
    if fabric.is_global_zero:
        save_file(experiment.network.state_dict(), out / f"{balance}.safetensors")

# A process that has other images.
settings["out"] = str(out / "never")
settings["data"]["count"] += fabric.global_rank == 1
config = validate(RunConfig, settings, "test")
errors = []
for act in (lambda: medduet.train(config), lambda: medduet.evaluate(run, data=config.data)):
    try:
        act()
    except medduet.ConfigError as error:
        errors.append(str(error))
(out / f"errors {fabric.global_rank}.json").write_text(json.dumps(errors))
"""
# 28 images, so the shares of three processes differ; and 1, so two processes have none.
EVALUATE = {"train": "--split train", "val": "--split val --data phantom --data.count 10 --size 16"}
# Adam forgets the scale of a gradient, but not beside a decay that is added to it.
BALANCES = ("sum", "uncertainty")
PLAIN = {"epochs": 2, "learning_rate": 0.01, "grad_clip": 0.5, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def three_processes(
    make_config: MakeConfig,
    trained_by_two: Path,
    torchrun: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What three processes evaluated, learnt and refused, all in one launch."""
    out = tmp_path_factory.mktemp("three")
    config = make_config(
        out / "run", train=PLAIN, data={"count": 20, "split": "made", "group_by": "none"}
    )
    (out / "config.json").write_text(config.model_dump_json())
    constants = f"EVALUATE, BALANCES = {EVALUATE!r}, {BALANCES!r}\n"
    (out / "script.py").write_text(constants + SCRIPT)
    shared = Path(__file__).with_name("conftest.py")
    torchrun(3, str(out / "script.py"), str(shared), str(trained_by_two), str(out))
    return out


@pytest.mark.parametrize(("name", "count"), [("train", 28), ("val", 1)])
def test_three_processes_evaluate_as_one(
    three_processes: Path, trained_by_two: Path, name: str, count: int, tmp_path: Path
) -> None:
    words = EVALUATE[name].split()
    assert main(["evaluate", str(trained_by_two), *words, "--out", str(tmp_path)]) == 0
    folders = (tmp_path, three_processes / name)
    expected, found = (read_json(folder / "metrics.json") for folder in folders)
    assert found[name]["n"] == count
    assert_close(found, expected)
    rows = []
    for folder in folders:
        with (folder / "predictions" / f"{name}.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert [row["index"] for row in rows[1]] == [str(i) for i in range(count)]
    for left, right in zip(*rows, strict=True):
        for column, value in left.items():
            same = value == right[column] or math.isclose(
                float(right[column]), float(value), rel_tol=1e-4
            )
            assert same, column


@pytest.mark.parametrize("balance", BALANCES)
def test_three_processes_learn_what_one_learns(
    three_processes: Path,
    make_config: MakeConfig,
    make_experiment: Callable[..., Experiment],
    tmp_path: Path,
    balance: str,
) -> None:
    # Without batch normalisation the gradient of a step must be that of the whole batch, though
    # the processes know different numbers of labels and masks.
    with torch.random.fork_rng(devices=[]):
        config = make_config(tmp_path, train=PLAIN, objective={"balance": balance})
        experiment = make_experiment(config)
        fit(experiment)
    found = load_file(three_processes / f"{balance}.safetensors")
    for name, value in experiment.network.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    rows = [RunFolder(run).epochs for run in (tmp_path, three_processes / balance)]
    for left, right in zip(*rows, strict=True):
        if balance == "uncertainty":
            assert right["weights"] == pytest.approx(left["weights"], rel=1e-3, abs=1e-4)
        for part in ("train", "val") if balance == "sum" else ():
            assert_close(right[part], left[part])


def test_processes_with_other_images_are_refused_in_each(three_processes: Path) -> None:
    expected = (
        "expected the same images and split of phantom in all 3 processes, but 1 have others than "
        "the first: give them one shared cache by --data.cache, or a split by --data.split FILE.csv"
    )
    for rank in range(3):
        errors = json.loads((three_processes / f"errors {rank}.json").read_text())
        assert errors == [expected, expected]
    assert not (three_processes / "never").exists()
