"""What the tests of training share."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

import medduet
from medduet import DenseLayout, Outputs, RunConfig
from medduet.errors import Interrupted
from medduet.losses.objective import Objective
from medduet.models.base import DuetNetwork, Normalize
from medduet.runs.folder import RunFolder
from medduet.training.experiment import Experiment
from medduet.training.reporter import Reporter
from medduet.training.state import load_checkpoint


class Plain(DuetNetwork):
    """A network without batch normalisation, whose step is the same on any number of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(1)
        self.features = nn.Conv2d(1, 6, 3, padding=1)
        self.class_head = nn.Linear(6, 4)
        self.dense_head = nn.Conv2d(6, 2, 1)
        self.encoder_modules = [self.features]

    def forward(self, image: Tensor) -> Outputs:
        features = self.features(self.normalize(image)).relu()
        return Outputs(self.class_head(features.mean(dim=(2, 3))), self.dense_head(features))

    def _classify(self, image: Tensor) -> Tensor | None:
        return self(image).class_logits


def plain_experiment(config: RunConfig, fabric: Fabric | None = None, **changes: Any) -> Experiment:
    """`Plain` on phantoms with unknown labels and masks; 22 in train make batches of 8, 8 and 6."""
    torch.manual_seed(0)
    network, layout = Plain(), DenseLayout(2, 1)
    images = medduet.open_images("phantom", size=16, count=31)
    images.train.labels[2:9] = -1
    object.__setattr__(images.train, "has_mask", np.arange(len(images.train)) % 3 > 0)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    objective = Objective(config.objective, layout, torch.tensor([1.0, 4.0, 0.5, 2.0]))
    return Experiment(fabric, config, images, network, objective, RunFolder(config.out), **changes)


@pytest.fixture(scope="session")
def make_experiment() -> Callable[..., Experiment]:
    return plain_experiment


class Listener(Reporter):
    """Keeps the messages, and does something after a step, counted over all epochs."""

    def __init__(self, step: int = 0, act: Callable[[], object] = lambda: None) -> None:
        self.messages, self.at_step, self.act, self.steps = list[str](), step, act, 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        self.steps += 1
        if self.steps == self.at_step:
            self.act()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="session")
def listen_at() -> type[Listener]:
    return Listener


@pytest.fixture(scope="session")
def stop_after() -> Callable[..., dict[str, Any]]:
    """Train until a step is over, and return the checkpoint: ``stop_after(1, config)``."""

    def train(step: int, config: RunConfig | None = None, resume: Path | None = None) -> Any:
        stop = threading.Event()
        # The event is seen in the step after the one that reported it.
        reporter = Listener(step - 1, stop.set)
        if step == 1:
            stop.set()
        with pytest.raises(Interrupted, match="medduet train --resume"):
            medduet.train(config, resume=resume, reporter=reporter, stop=stop)
        out = resume or (config and config.out)
        return load_checkpoint(Path(str(out)) / "checkpoints" / "last.pt")

    return train


@pytest.fixture(scope="session")
def epochs() -> Callable[[Path], list[dict[str, Any]]]:
    """Give the rows of a run, without what depends on the machine."""
    clock = ("seconds", "images_per_second", "peak_memory_gb")

    def rows(run: Path) -> list[dict[str, Any]]:
        found = RunFolder(run).epochs
        assert all(row[name] > 0 for row in found for name in clock)
        return [{key: row[key] for key in row if key not in clock} for row in found]

    return rows


@pytest.fixture(scope="session")
def assert_same_run(epochs: Callable[[Path], list[dict[str, Any]]]) -> Callable[..., None]:
    """Check that two finished runs have the same weights, numbers and predictions, bit for bit."""

    def check(found: Path, expected: Path) -> None:
        runs = (found, expected)
        left, right = (load_file(run / "bundle" / "model.safetensors") for run in runs)
        assert list(left) == list(right)
        for name, value in left.items():
            assert torch.equal(value, right[name]), name
        assert epochs(found) == epochs(expected)
        for name in ("metrics.json", "predictions/val.csv", "predictions/test.csv"):
            assert (found / name).read_text() == (expected / name).read_text()
        assert not (found / "checkpoints").exists()

    return check


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run words in several processes: ``torchrun(2, "-m", "medduet", "train", recipe)``."""

    def run(
        processes: int, *words: str, restarts: int = 0, fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        options = ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
        done = subprocess.run(
            [*command, "--monitor-interval", "0.2", *words],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert (done.returncode != 0) == fails, done.stderr[-4000:]
        return done

    return run
