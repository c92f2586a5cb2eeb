"""Steps that are not finite, and memory that does not do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medduet
from medduet import ConfigError, RunConfig, TrainingError
from medduet.config import Task
from medduet.errors import Interrupted
from medduet.losses.objective import Objective
from medduet.losses.tasks import PerImage
from medduet.runs.folder import RunFolder
from medduet.training import step as step_module
from medduet.training.checkpoint import load_state
from medduet.training.memory import noted_micro_batch, parts_of
from medduet.training.reporter import Reporter
from medduet.types import Batch, Outputs
from medduet.utils.parsing import read_json

MakeConfig = Callable[..., RunConfig]
BAD = 5
"""The training image that is made to give NaN."""


class Listener(Reporter):
    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def bad_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The training images that give NaN in the loss."""
    bad, plain = [BAD], Objective.forward

    def forward(
        self: Objective, outputs: Outputs, batch: Batch, normalized: torch.Tensor
    ) -> dict[Task, PerImage]:
        terms = plain(self, outputs, batch, normalized)
        found = torch.isin(batch.indices, torch.tensor(bad)) & torch.is_grad_enabled()
        return {
            task: PerImage(torch.where(found, torch.nan, term.loss), term.weight)
            for task, term in terms.items()
        }

    monkeypatch.setattr(Objective, "forward", forward)
    return bad


def epochs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "epochs.jsonl").read_text("utf-8").splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return all(torch.equal(left[name], right[name]) for name in left)


def test_stopping_keeps_the_batch(
    make_config: MakeConfig, tmp_path: Path, bad_images: list[int]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"the loss is not finite in epoch 1, step \d") as told:
        medduet.train(make_config(run))
    [file] = (run / "not-finite").iterdir()
    assert f"which are in {file}: lower --lr" in str(told.value)
    assert "\n" not in str(told.value)
    data = medduet.open_images("phantom", size=16, count=40).train
    with np.load(file) as kept:
        assert BAD in kept["indices"]
        assert str(kept["indices"].tolist()) in str(told.value)
        assert (kept["images"][:, 0] == data.images[kept["indices"]]).all()
        assert (kept["labels"] == data.labels[kept["indices"]]).all()
        assert (kept["masks"] == data.masks[kept["indices"]]).all()


def test_skipping_leaves_no_trace_of_the_step(
    make_config: MakeConfig,
    tmp_path: Path,
    bad_images: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener()
    config = make_config(tmp_path / "skipped", train={"on_not_finite": "skip", "clip": 1.0})
    medduet.train(config, reporter=listener)
    rows = epochs(tmp_path / "skipped")
    assert [len(row["left_out"]) for row in rows] == [1, 1]
    begins, *told = listener.told
    assert begins.startswith("phantom, ")
    assert len(told) == 2
    assert len(list((tmp_path / "skipped" / "not-finite").iterdir())) == 2
    assert "the step is left out" in told[0]

    # The same as if these steps had not been there.
    bad_images.clear()
    steps = {(row["epoch"], row["left_out"][0]) for row in rows}
    plain = step_module.train_step
    monkeypatch.setattr(
        "medduet.training.loop.train_step",
        lambda experiment, state, batch: (
            (state.progress.epoch, state.progress.step + 1) not in steps
            and plain(experiment, state, batch)
        ),
    )
    medduet.train(make_config(tmp_path / "without", train={"clip": 1.0}))
    assert same(tmp_path / "skipped", tmp_path / "without")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_was_stopped_in_between_ends_the_same(
    make_config: MakeConfig, tmp_path: Path, bad_images: list[int], policy: str
) -> None:
    train = {"on_not_finite": policy, "epochs": 3, "augment": "flip"}
    medduet.train(make_config(tmp_path / "whole", train=train))
    run, stop = tmp_path / "stopped", threading.Event()

    class Stopper(Listener):
        def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
            self.told.append("step")
            if self.told.count("step") == 6:
                stop.set()

    with pytest.raises(Interrupted):
        medduet.train(make_config(run, train=train), stop=stop, reporter=Stopper())
    medduet.train(resume=run)
    assert same(tmp_path / "whole", run)
    assert [row["left_out"] for row in epochs(run)] == [
        row["left_out"] for row in epochs(tmp_path / "whole")
    ]


def test_rolling_back_starts_the_epoch_again_without_the_step(
    make_config: MakeConfig, tmp_path: Path, bad_images: list[int]
) -> None:
    listener, seen = Listener(), list[int]()
    listener.begin_epoch = lambda epoch, epochs, steps: seen.append(epoch)  # type: ignore[method-assign]
    config = make_config(tmp_path / "run", train={"on_not_finite": "rollback"})
    medduet.train(config, reporter=listener)
    assert seen == [1, 1, 2, 2]
    rows = epochs(tmp_path / "run")
    assert [len(row["left_out"]) for row in rows] == [1, 1]
    # What was done before the step counts once.
    skipped = make_config(tmp_path / "skipped", train={"on_not_finite": "skip"})
    medduet.train(skipped)
    assert same(tmp_path / "run", tmp_path / "skipped")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_is_never_finite_ends(
    make_config: MakeConfig, tmp_path: Path, bad_images: list[int], policy: str
) -> None:
    bad_images += range(40)
    train = {"on_not_finite": policy, "epochs": 20}
    with pytest.raises(TrainingError, match=r"21 steps were not finite.*lower --lr"):
        medduet.train(make_config(tmp_path / "run", train=train))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_answers_that_are_not_finite_end_the_run(
    make_config: MakeConfig, tmp_path: Path, policy: str
) -> None:
    train = {"on_not_finite": policy, "learning_rate": 1e30}
    with pytest.raises(TrainingError, match="answers for val are not finite after epoch 1: lower"):
        medduet.train(make_config(tmp_path / "run", train=train))


def test_weights_that_are_not_finite_are_not_saved(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = tmp_path / "run", torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: Any) -> Any:
        steps.append(1)
        found = plain(self, *arguments)
        if len(steps) == 8:  # the last one of the second epoch
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(torch.inf)
        return found

    steps: list[int] = []
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(TrainingError, match="answers for val are not finite after epoch 2"):
        medduet.train(make_config(run, train={"epochs": 3}))
    state = load_state(run / "checkpoints" / "last.safetensors")
    assert state["progress"]["epoch"] == 2
    assert all(value.isfinite().all() for value in state["network"].values())


# Memory -----------------------------------------------------------------------------------------


def test_parts_add_up_to_the_whole_step(make_config: MakeConfig, tmp_path: Path) -> None:
    """Without batch normalisation in training mode, the gradient is the same but for rounding."""
    found = {}
    for name, most in (("whole", None), ("parts", 3)):
        train = {"micro_batch_size": most, "epochs": 2, "learning_rate": 1e-4}
        model = {"name": "timm:convnext_atto", "width": None}  # it has no batch normalisation
        data = {"size": 32}
        tasks = {"tasks": ["classify"], "class_weights": "balanced"}
        config = make_config(tmp_path / name, train=train, model=model, data=data, objective=tasks)
        medduet.train(config)
        found[name] = [row["train"]["loss"] for row in epochs(tmp_path / name)]
    assert found["parts"] == pytest.approx(found["whole"], rel=1e-4)
    assert found["parts"] != found["whole"]


def test_every_image_is_in_one_part() -> None:
    for images in range(2, 20):
        batch = Batch(torch.zeros(images, 1, 2, 2), *[torch.arange(images)] * 4)
        for most in range(2, 9):
            parts = parts_of(batch, most)
            sizes = [len(part.image) for part in parts]
            assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
            assert min(sizes) >= 2
            assert max(sizes) <= max(most, 3)


def no_memory(monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    """Let the network run out of memory with more than so many images in training."""
    plain = medduet.models.UNet.forward

    def forward(self: Any, image: torch.Tensor) -> Outputs:
        if len(image) > above and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, image)

    monkeypatch.setattr(medduet.models.UNet, "forward", forward)


def test_less_memory_makes_smaller_parts_and_says_so(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    no_memory(monkeypatch, 2)
    medduet.train(make_config(tmp_path / "run"), reporter=listener)
    assert [text.split(":")[0] for text in listener.told[1:]] == [
        "out of memory with 8 images at a time",
        "out of memory with 4 images at a time",
    ]
    monkeypatch.undo()
    medduet.train(make_config(tmp_path / "asked", train={"micro_batch_size": 2}))
    losses = [
        [row["train"]["loss"] for row in epochs(tmp_path / name)] for name in ("run", "asked")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_too_little_memory_for_two_images(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory(monkeypatch, 1)
    with pytest.raises(TrainingError, match="out of memory with 2 images: give a smaller --size"):
        medduet.train(make_config(tmp_path / "run"))
    assert noted_micro_batch(RunFolder(tmp_path / "run")) == 2


def test_a_balance_that_needs_the_whole_batch(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        tmp_path / "a", train={"micro_batch_size": 4}, objective={"balance": "dwa"}
    )
    with pytest.raises(ConfigError, match="--balance dwa needs all images of a step"):
        medduet.train(config)
    no_memory(monkeypatch, 4)
    config = make_config(tmp_path / "b", objective={"balance": "pcgrad"})
    with pytest.raises(TrainingError, match=r"--balance pcgrad needs all images.*--batch-size"):
        medduet.train(config)


LIMITED = """
import resource, sys
import medduet, medduet.training.run, kornia.augmentation, monai.losses
from medduet.config import load_recipe
from medduet.training.reporter import Reporter

class Listener(Reporter):
    def message(self, text):
        print(text, flush=True)

held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (held + {room} * 2**20, most))
judge = medduet.training.run.judge

def judge_with_room(*given):  # what is imported only now finds no room where training took all
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return judge(*given)

medduet.training.run.judge = judge_with_room
recipe, resume = sys.argv[1], sys.argv[2:]
try:
    if resume:
        medduet.train(resume=resume[0], reporter=Listener())
    else:
        medduet.train(load_recipe(recipe), reporter=Listener())
except medduet.TrainingError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_that_really_runs_out(make_config: MakeConfig, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    config = make_config(
        tmp_path / "run",
        data={"size": 64, "count": 200},
        model={"width": 16},
        train={"batch_size": 128, "epochs": 1},
        evaluate={"batch_size": 2},
    )
    recipe.write_text(config.model_dump_json())
    words = [sys.executable, "-c", LIMITED.format(room=1200), str(recipe)]
    told = ""
    for _ in range(6):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        told += done.stdout + done.stderr
        # The space for addresses may be used up to its last page, where oneDNN can't go on.
        again = f"medduet train --resume {tmp_path / 'run'}"
        if done.returncode == 0 or again not in done.stderr:
            break
        words = [*words[:4], str(tmp_path / "run")]
    assert done.returncode == 0, told[-2000:]
    assert told.splitlines()[1].startswith("out of memory with 128 images at a time"), told
    assert read_json(tmp_path / "run" / "metrics.json")["test"]["n"] == 40
