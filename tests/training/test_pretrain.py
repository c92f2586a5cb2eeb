"""Pretraining: most of each image is blanked and rebuilt."""

from pathlib import Path

import pytest
import torch

import medduet
from medduet.cli import main
from medduet.losses.objective import reconstruction_loss
from medduet.runs.folder import RunFolder
from medduet.training.step import hide
from medduet.utils.parsing import read_json


@pytest.mark.parametrize(("dtype", "grey"), [(torch.uint8, 127), (torch.float32, 0.5)])
def test_as_many_patches_are_hidden_in_each_image(dtype: torch.dtype, grey: float) -> None:
    image = torch.zeros(5, 3, 32, 48, dtype=dtype)
    torch.manual_seed(0)
    masked, hidden = hide(image, 0.6)
    assert hidden is not None
    assert hidden.flatten(1).float().mean(dim=1).tolist() == pytest.approx([38 / 64] * 5)
    assert torch.equal(masked, torch.where(hidden, torch.tensor(grey, dtype=dtype), image))
    patches = hidden.view(5, 8, 4, 8, 6)
    assert torch.equal(patches.any(dim=4).any(dim=2), patches.all(dim=4).all(dim=2))
    assert not torch.equal(hidden[0], hidden[1])


def test_the_loss_is_that_of_hidden_pixels() -> None:
    target = torch.zeros(2, 3, 8, 8)
    image, hidden = target.clone(), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hidden[:, :, :4] = True
    image[0, :, 4:], image[1, :, :4] = 9.0, 2.0
    assert reconstruction_loss(image, target, hidden).loss.tolist() == [0.0, 4.0]


def test_it_learns_and_training_starts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size", "32", "--data.count", "120", "--model.width", "4", "--train.augment", "flip"]
    out = tmp_path / "pre"
    assert main(["pretrain", "phantom", *words, "--epochs", "12", "--out", str(out)]) == 0
    assert f"--model.weights {out}" in capsys.readouterr().out
    losses = [row["train"]["reconstruct"] for row in RunFolder(out).epochs]
    assert losses[-1] < 0.6 * losses[0]
    assert read_json(out / "metrics.json")["selected_epoch"] == 12
    again = ["train", "auto", "--data", "phantom", *words, "--epochs", "1"]
    assert main([*again, "--model.weights", str(out), "--out", str(tmp_path / "run")]) == 0
    taken = read_json(tmp_path / "run" / "weights.json")
    assert taken["not_in_file"] == ["class_head.weight", "class_head.bias"]


def test_there_must_be_something_to_rebuild(tmp_path: Path) -> None:
    config = medduet.load_recipe("pretrain").model_copy(
        update={
            "data": medduet.DataConfig(name="phantom", size=16, count=20),
            "objective": medduet.ObjectiveConfig(tasks=("classify",)),
            "out": tmp_path / "run",
        }
    )
    with pytest.raises(medduet.ConfigError, match=r"--train\.mask-ratio needs"):
        medduet.train(config)
