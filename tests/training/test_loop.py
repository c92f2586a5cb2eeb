"""Training: what each setting does, and runs that are stopped and go on.

A stopped and resumed run must equal the uninterrupted one bit for bit, with augmentation on, so
that a generator that isn't restored shows.
"""

import math
import os
import random
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medduet
from medduet import ConfigError, RunConfig, RunRecord, TrainingError
from medduet.cli import main
from medduet.cli.display.progress import ConsoleReporter
from medduet.data.batches import train_batches
from medduet.training.state import load_checkpoint, save_checkpoint
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]
# The reconstruction gets better all the time, so the bundle holds the weights of a late epoch.
LONG = {
    "train": {
        "epochs": 10,
        "augment": "strong",
        "grad_clip": 1.0,
        "patience": 5,
        "warmup_epochs": 2,
        "cosine_epochs": 100,
        "ema": 0.7,
        "precision": "bf16-mixed",
    },
    "evaluate": {"select": "mse"},
}


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
from medduet.runs.predictions import Predictions
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

write, killer = Predictions.to_csv, Killer()

def write_and_die(*arguments):
    write(*arguments)
    killer.die_at("predictions", 1)

Predictions.to_csv = write_and_die
medduet.train(load_recipe(recipe).model_copy(update={"out": Path(out)}), reporter=killer)
"""


# In the middle of an epoch; while the selected one is evaluated, when all training is done; before
# there is a checkpoint; right after one was saved.
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("step", 15),
        ("predictions", 1),
        *(pytest.param(*moment, marks=pytest.mark.slow) for moment in (("step", 2), ("epoch", 5))),
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(
    make_config: MakeConfig,
    uninterrupted: Path,
    assert_same_run: Callable[..., None],
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
    assert_same_run: Callable[..., None],
    listen_at: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, recipe, total = tmp_path / "run", tmp_path / "recipe.yaml", 0
    recipe.write_text(make_config(tmp_path, **LONG).model_dump_json())
    words = ["train", str(recipe), "--out", str(run)]
    # 4 steps make an epoch; the second stop falls on the last one, from which two more go on.
    for number, step in ((signal.SIGINT, 6), (signal.SIGTERM, 1), (signal.SIGINT, 4)):
        at_step = listen_at(step, partial(os.kill, os.getpid(), number))
        with monkeypatch.context() as patch:
            patch.setattr(ConsoleReporter, "step", lambda self, *given: at_step.step(*given))  # noqa: B023
            assert main(words) == 130
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("medduet: stopped in epoch")
        assert last.endswith(f"medduet train --resume {run}")
        saved = load_checkpoint(run / "checkpoints" / "last.pt")["progress"]
        assert f"in epoch {saved['epoch']} after step {saved['step']} of" in last
        total += step + 1  # a signal is seen in the step after
        assert (saved["epoch"] - 1) * 4 + saved["step"] == total
        words = ["train", "--resume", str(run)]
    assert main(words) == 0
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


def test_checkpoints_that_cannot_be_gone_on_from(
    make_config: MakeConfig, stop_after: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    last, state = run / "checkpoints" / "last.pt", stop_after(1, make_config(run))
    save_checkpoint(last, state | {"world_size": 2})
    with pytest.raises(TrainingError, match="torchrun --nproc-per-node 2"):
        medduet.train(resume=run)
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"last\.pt is damaged"):
        medduet.train(resume=run)
    environment = read_json(run / "environment.json")
    environment["data"]["fingerprint"] = "of other images"
    write_json(run / "environment.json", environment)
    with pytest.raises(ConfigError, match="began with other images than phantom has now"):
        medduet.train(resume=run)


# Settings ---------------------------------------------------------------------------------------


def test_epochs_of_finished_runs(uninterrupted: Path, finished_run: RunRecord, epochs: Any) -> None:
    # LONG says 100 epochs, as the paper; the other run takes the default, its own 4.
    for run, first, period in ((uninterrupted, 1e-3, 100), (finished_run.path, 0.02, 4)):
        rows, metrics = epochs(run), read_json(run / "metrics.json")
        rise = 0 if run == finished_run.path else LONG["train"]["warmup_epochs"]
        rates = [first * (i + 1) / (rise + 1) for i in range(rise)]
        period -= rise
        rates += [first / 2 * (1 + math.cos(math.pi * i / period)) for i in range(len(rows) - rise)]
        assert [row["learning_rate"] for row in rows] == pytest.approx(rates, rel=1e-9)
        for row in rows:
            for part in (row["train"], row["val"]):
                terms = [part[task] for task in ("classify", "segment", "reconstruct")]
                assert part["loss"] == pytest.approx(sum(terms))
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
    rows = epochs(uninterrupted)
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"]
    assert rows[0]["val"]["mse"] == pytest.approx(rows[0]["val"]["reconstruct"], rel=1e-6)
    assert read_json(uninterrupted / "metrics.json")["selected_epoch"] > 6


def test_patience(make_config: MakeConfig, epochs: Any, tmp_path: Path) -> None:
    # The rate is so small that no score changes: the first epoch stays the best.
    train = {"epochs": 9, "patience": 2, "learning_rate": 1e-12}
    config = make_config(tmp_path / "run", train=train, evaluate={"select": "accuracy"})
    record = medduet.train(config)
    scores = [row["val"]["score"] for row in epochs(record.path)]
    assert len(scores) == 3
    assert max(scores) == scores[0]
    assert record.metrics["selected_epoch"] == 1


def test_clipping_and_weight_decay(
    make_config: MakeConfig, stop_after: Any, tmp_path: Path
) -> None:
    def after_one_step(**train: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of the class head, and the gradient, which shows in Adam's first moment."""
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        state = stop_after(1, make_config(out, train=train | {"learning_rate": 0.01}))
        moments = [value["exp_avg"].flatten() for value in state["optimizer"]["state"].values()]
        return state["network"]["class_head.weight"], torch.cat(moments) / 0.1

    plain, gradient = after_one_step()
    _, clipped = after_one_step(grad_clip=1e-3)
    assert gradient.norm() > 0.1
    assert clipped.norm() == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), gradient / gradient.norm())
    # AdamW decays apart from the gradient, Adam within it.
    apart, same = after_one_step(optimizer="adamw", weight_decay=0.5)
    coupled, other = after_one_step(weight_decay=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = medduet.create_model(
            "vovunet_var", in_channels=1, num_classes=4, dense_channels=2, width=2
        ).class_head.weight.detach()
    torch.testing.assert_close(apart, plain - 0.01 * 0.5 * start, rtol=1e-4, atol=1e-7)
    assert torch.equal(gradient, same)
    assert not torch.allclose(gradient, other)
    assert not torch.allclose(coupled, apart)


def test_the_average_of_the_weights_is_evaluated(
    make_config: MakeConfig, stop_after: Any, tmp_path: Path
) -> None:
    def weight(steps: int, ema: float) -> list[torch.Tensor]:
        state = stop_after(steps, make_config(tmp_path / f"{steps}-{ema}", train={"ema": ema}))
        names = ["class_head.weight", "stem.1.running_mean"]
        network, average = state["network"], state["average"] or {}
        return [network[x] for x in names] + [average.get(f"module.{x}") for x in names]

    plain = [weight(steps, 0)[:2] for steps in (1, 2, 3)]
    *same, mean, running_mean = weight(3, 0.75)
    assert all(map(torch.equal, same, plain[2]))  # it changes nothing of the training
    for average, place in ((mean, 0), (running_mean, 1)):
        first, second, third = (each[place] for each in plain)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        torch.testing.assert_close(average, expected)
    record = medduet.train(make_config(tmp_path / "run", train={"ema": 0.75, "epochs": 1}))
    kept = load_file(record.path / "bundle" / "model.safetensors")
    assert not torch.equal(kept["class_head.weight"], plain[2][0])


def test_seeds_matter_and_nothing_else_does(
    make_config: MakeConfig, stop_after: Any, tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(random.randrange(2**31))
        config = make_config(tmp_path / name, train={"seed": seed, "augment": "strong"})
        weights.append(stop_after(2, config)["network"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["stem.0.weight"], weights[2]["stem.0.weight"])


def test_class_weights_reach_the_loss(
    make_config: MakeConfig, stop_after: Any, tmp_path: Path
) -> None:
    # 30 training images of 4 classes: two classes have 8 images, two have 7.
    changes = {"objective": {"class_weights": "balanced"}, "data": {"count": 42}}
    sums = stop_after(1, make_config(tmp_path / "run", **changes))["own"]["sums"]
    batch = train_batches(30, 8, seed=0, epoch=1)[0]
    label = medduet.open_images("phantom", size=16, count=42).train.labels
    each = 30 / (4 * np.bincount(label))
    assert len(set(each)) == 2
    assert float(sums[1, 0]) == pytest.approx(each[label[batch]].sum())
