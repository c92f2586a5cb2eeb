"""Training: what each setting does, and runs that are stopped and go on.

A stopped and resumed run must equal the uninterrupted one bit for bit, with augmentation on, so
that a generator that isn't restored shows.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medduet
from medduet import RunConfig, RunRecord, TrainingError
from medduet.cli import main
from medduet.cli.display.progress import ConsoleReporter
from medduet.data.batches import train_batches
from medduet.errors import Interrupted
from medduet.training.reporter import Reporter
from medduet.training.state import load_checkpoint, save_checkpoint
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]
# The reconstruction gets better all the time, so the bundle holds the weights of a late epoch.
LONG = {
    "train": {
        "epochs": 10,
        "augment": "strong",
        "grad_clip": 1.0,
        "patience": 5,
        "cosine_epochs": 100,
        "precision": "bf16-mixed",
    },
    "evaluate": {"select": "mse"},
}


class ActAt(Reporter):
    """Does something after a step, counted over all epochs."""

    def __init__(self, act: Callable[[], object], step: int) -> None:
        self.act, self.at_step, self.steps = act, step, 0

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        self.steps += 1
        if self.steps == self.at_step:
            self.act()


def epochs(run: Path) -> list[dict[str, Any]]:
    """The rows of a run, without what depends on the machine."""
    rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text("utf-8").splitlines()]
    clock = ("seconds", "images_per_second", "peak_memory_gb")
    assert all(row[name] > 0 for row in rows for name in clock)
    return [{key: row[key] for key in row if key not in clock} for row in rows]


def assert_same_run(found: Path, expected: Path) -> None:
    weights = [load_file(run / "bundle" / "model.safetensors") for run in (found, expected)]
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert epochs(found) == epochs(expected)
    assert read_json(found / "metrics.json") == read_json(expected / "metrics.json")
    for name in ("val", "test"):
        texts = [(run / "predictions" / f"{name}.csv").read_text() for run in (found, expected)]
        assert texts[0] == texts[1]
    assert not (found / "checkpoints").exists()


@pytest.fixture(scope="module")
def uninterrupted(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    return medduet.train(make_config(out, **LONG)).path


# Going on ---------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
import medduet
from medduet.config import load_recipe
from medduet.runs.folder import RunFolder
from medduet.training.reporter import Reporter

recipe, out, kind, number = sys.argv[1:]

class Killer(Reporter):
    steps = 0

    def step(self, images, losses):
        self.steps += 1
        self.die_at("step", self.steps)

    def end_epoch(self, row):
        self.die_at("epoch", row["epoch"])

    def die_at(self, *moment):
        if moment == (kind, int(number)):
            os.kill(os.getpid(), signal.SIGKILL)

write, killer = RunFolder.write_predictions, Killer()

def write_and_die(*arguments):
    write(*arguments)
    killer.die_at("predictions", 1)

RunFolder.write_predictions = write_and_die
medduet.train(load_recipe(recipe).model_copy(update={"out": Path(out)}), reporter=killer)
"""
# In the first epoch, before there is a checkpoint; in the middle of one; right after one was
# saved; while the selected epoch is evaluated, when all training is done.
MOMENTS = [
    ("step", 15),
    ("predictions", 1),
    *(pytest.param(*moment, marks=pytest.mark.slow) for moment in (("step", 2), ("epoch", 5))),
]


@pytest.mark.parametrize(("kind", "number"), MOMENTS)
def test_a_killed_run_goes_on_to_the_same_end(
    make_config: MakeConfig,
    uninterrupted: Path,
    python_command: list[str],
    tmp_path: Path,
    kind: str,
    number: int,
) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(make_config(tmp_path, **LONG).model_dump_json())
    words = [*python_command, "-c", KILL, str(recipe), str(run), kind, str(number)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (run / "metrics.json").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_run(run, uninterrupted)


def test_the_command_stops_at_signals_and_goes_on(
    make_config: MakeConfig,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(make_config(tmp_path, **LONG).model_dump_json())
    words = ["train", str(recipe), "--out", str(run)]
    for number, step in ((signal.SIGINT, 6), (signal.SIGTERM, 9)):
        at_step = ActAt(partial(os.kill, os.getpid(), number), step)
        with monkeypatch.context() as patch:
            patch.setattr(ConsoleReporter, "step", lambda self, *given: at_step.step(*given))  # noqa: B023
            assert main(words) == 130
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("medduet: stopped in epoch")
        assert last.endswith(f"medduet train --resume {run}")
        saved = load_checkpoint(run / "checkpoints" / "last.pt")["progress"]
        assert f"in epoch {saved['epoch']} after step {saved['step']} of" in last
        words = ["train", "--resume", str(run)]
    assert main(words) == 0
    assert_same_run(run, uninterrupted)


def test_stopping_finishes_the_step_and_saves(
    make_config: MakeConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for step in (6, 1, 4):  # 4 steps make an epoch; the last stop falls on an epoch's last step
        stop = threading.Event()
        arguments = {"resume": run} if run.exists() else {"config": make_config(run, **LONG)}
        with pytest.raises(Interrupted, match=f"medduet train --resume {run}"):
            medduet.train(**arguments, reporter=ActAt(stop.set, step), stop=stop)
    progress = load_checkpoint(run / "checkpoints" / "last.pt")["progress"]
    # The event is seen in the step after the one that reported it.
    assert (progress["epoch"] - 1) * 4 + progress["step"] == 6 + 1 + 4 + 3
    assert medduet.train(resume=run).path == run
    assert_same_run(run, uninterrupted)


def test_a_run_killed_while_it_cleans_up_is_finished(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, unlink = tmp_path / "run", Path.unlink

    def die_after_removing_a_checkpoint(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.parent.name == "checkpoints" and path.suffix == ".pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", die_after_removing_a_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        medduet.train(make_config(run, train={"epochs": 1}))
    monkeypatch.undo()
    assert (run / "checkpoints" / "best.pt").exists()
    (run / "checkpoints" / ".last.pt.x.tmp").touch()
    assert medduet.train(resume=run).metrics == read_json(run / "metrics.json")
    assert not (run / "checkpoints").exists()


def test_resuming_with_another_number_of_processes(make_config: MakeConfig, tmp_path: Path) -> None:
    stop = threading.Event()
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        medduet.train(make_config(run), reporter=ActAt(stop.set, 1), stop=stop)
    last = run / "checkpoints" / "last.pt"
    save_checkpoint(last, load_checkpoint(last) | {"world_size": 2})
    with pytest.raises(TrainingError, match="torchrun --nproc-per-node 2"):
        medduet.train(resume=run)


def test_a_damaged_checkpoint_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    stop = threading.Event()
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        medduet.train(make_config(run), reporter=ActAt(stop.set, 1), stop=stop)
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"last\.pt is damaged"):
        medduet.train(resume=run)


# Settings ---------------------------------------------------------------------------------------


def test_learning_rate_follows_the_cosine(uninterrupted: Path, finished_run: RunRecord) -> None:
    # LONG says 100 epochs, as the paper; the other run takes the default, its own 4.
    for run, first, period in ((uninterrupted, 1e-3, 100), (finished_run.path, 0.02, 4)):
        rows = epochs(run)
        expected = [first / 2 * (1 + math.cos(math.pi * i / period)) for i in range(len(rows))]
        assert [row["learning_rate"] for row in rows] == pytest.approx(expected, rel=1e-9)


def test_patience(make_config: MakeConfig, tmp_path: Path) -> None:
    # The rate is so small that no score changes: the first epoch stays the best.
    changes = {"train": {"epochs": 9, "patience": 2, "learning_rate": 1e-12}}
    changes |= {"evaluate": {"select": "accuracy"}}
    record = medduet.train(make_config(tmp_path / "run", **changes))
    scores = [row["val"]["score"] for row in epochs(record.path)]
    assert len(scores) == 3
    assert max(scores) == scores[0]
    assert record.metrics["selected_epoch"] == 1


def test_the_selected_epoch_has_the_best_validation_score(
    uninterrupted: Path, finished_run: RunRecord
) -> None:
    for run in (uninterrupted, finished_run.path):
        rows, metrics = epochs(run), read_json(run / "metrics.json")
        metrics = metrics.get("validation_selected", metrics)
        scores = [row["val"]["score"] for row in rows]
        assert metrics["selected_epoch"] == 1 + scores.index(max(scores))
        selected = rows[metrics["selected_epoch"] - 1]["val"]
        auto = run == finished_run.path
        score = (selected["auc"] + selected["dice"]) / 2 if auto else -selected["mse"]
        assert selected["score"] == pytest.approx(score)
        if auto:  # the other run computes in bfloat16 until its selected epoch is evaluated
            for name in ("accuracy", "auc", "balanced_accuracy", "dice", "mse"):
                assert metrics["val"][name] == pytest.approx(selected[name], rel=1e-6)
    assert read_json(uninterrupted / "metrics.json")["selected_epoch"] > 6


def test_losses_of_an_epoch(uninterrupted: Path) -> None:
    rows = epochs(uninterrupted)
    for split in ("train", "val"):
        for row in rows:
            terms = [row[split][task] for task in ("classify", "segment", "reconstruct")]
            assert row[split]["loss"] == pytest.approx(sum(terms))
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"]
    assert rows[0]["val"]["mse"] == pytest.approx(rows[0]["val"]["reconstruct"], rel=1e-6)


def test_clipping_bounds_the_gradient(make_config: MakeConfig, tmp_path: Path) -> None:
    # Adam divides by the gradient's size, so clipping shows in its moments, not in the step.
    moments = []
    for clip in (None, 1e-3):
        run, stop = tmp_path / str(clip), threading.Event()
        stop.set()
        with pytest.raises(Interrupted):
            medduet.train(make_config(run, train={"grad_clip": clip}), stop=stop)
        state = load_checkpoint(run / "checkpoints" / "last.pt")["optimizer"]["state"]
        gradient = torch.cat([value["exp_avg"].flatten() for value in state.values()]) / 0.1
        moments.append(gradient)
    assert moments[0].norm() > 0.1
    assert moments[1].norm() == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(moments[1] / moments[1].norm(), moments[0] / moments[0].norm())


def test_adamw_decays_apart_from_the_gradient(make_config: MakeConfig, tmp_path: Path) -> None:
    states = {}
    for optimizer, decay in (("adam", 0.0), ("adam", 0.5), ("adamw", 0.5)):
        run, stop = tmp_path / f"{optimizer}{decay}", threading.Event()
        stop.set()
        changes = {"optimizer": optimizer, "weight_decay": decay, "learning_rate": 0.01}
        with pytest.raises(Interrupted):
            medduet.train(make_config(run, train=changes), stop=stop)
        states[optimizer, decay] = load_checkpoint(run / "checkpoints" / "last.pt")
    plain, coupled, apart = (state["network"]["class_head.weight"] for state in states.values())
    start = _first_weights(make_config, tmp_path)
    torch.testing.assert_close(apart, plain - 0.01 * 0.5 * start, rtol=1e-4, atol=1e-7)
    moments = [state["optimizer"]["state"][0]["exp_avg"] for state in states.values()]
    assert torch.equal(moments[0], moments[2])
    assert not torch.allclose(moments[0], moments[1])
    assert not torch.allclose(coupled, apart)


def _first_weights(make_config: MakeConfig, tmp_path: Path) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_config(tmp_path).train.seed)
        network = medduet.create_model(
            "vovunet_var", in_channels=1, num_classes=4, dense_channels=2, width=2
        )
    return network.class_head.weight.detach()


def test_seeds_matter_and_nothing_else_does(make_config: MakeConfig, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(random.randrange(2**31))
        changes = {"seed": seed, "augment": "strong", "epochs": 1}
        record = medduet.train(make_config(tmp_path / name, train=changes))
        weights.append(load_file(record.path / "bundle" / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["stem.0.weight"], weights[2]["stem.0.weight"])


def test_class_weights_reach_the_loss(make_config: MakeConfig, tmp_path: Path) -> None:
    weights = []
    for name in ("none", "balanced"):
        stop = threading.Event()
        stop.set()
        # 30 training images of 4 classes: two classes have 8 images, two have 7.
        changes = {"objective": {"class_weights": name}, "data": {"count": 42}}
        with pytest.raises(Interrupted):
            medduet.train(make_config(tmp_path / name, **changes), stop=stop)
        sums = load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["sums"]
        weights.append(float(sums[1, 0]))
    batch = train_batches(30, 8, seed=0, epoch=1)[0]
    label = medduet.open_images("phantom", size=16, count=42).train.labels
    each = 30 / (4 * np.bincount(label))
    assert len(set(each)) == 2
    assert weights == pytest.approx([8, each[label[batch]].sum()])


def test_the_reporter_gets_everything(make_config: MakeConfig, tmp_path: Path) -> None:
    calls: list[Any] = []

    class Notes(Reporter):
        def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
            calls.append(("begin", epoch, epochs, steps))

        def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
            assert list(losses()) == ["classify", "segment", "reconstruct"]
            assert all(math.isfinite(value) for value in losses().values())
            calls.append(("step", images))

        def end_epoch(self, row: Mapping[str, Any]) -> None:
            calls.append(("end", row["epoch"]))

    medduet.train(make_config(tmp_path / "run"), reporter=Notes())
    steps = [8, 8, 8, 4]
    expected: list[Any] = []
    for epoch in (1, 2):
        expected += [("begin", epoch, 2, 4), *(("step", n) for n in steps), ("end", epoch)]
    assert calls == expected
