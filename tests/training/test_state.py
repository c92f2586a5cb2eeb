"""Checkpoints hold everything, are never half written, and run no code."""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from medduet import MissingFileError, TrainingError
from medduet.training.state import Best, load_checkpoint, save_checkpoint


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("witness",)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle", "code"])
def test_damaged_files(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    contents = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "garbage": b"\x80\x02K\x01." * 9,
        "pickle": pickle.dumps(Malicious(), protocol=2),
    }
    if damage == "code":
        torch.save({"a": Malicious()}, path)
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(TrainingError, match=r"state\.pt is damaged, or no checkpoint of MedDuet"):
        load_checkpoint(path)
    with pytest.raises(MissingFileError, match="none"):
        load_checkpoint(tmp_path / "none")
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    ("scores", "taken"),
    [
        ([0.25, 0.75, 0.5, 0.75, 0.9], [True, True, False, False, True]),
        # Where there is no score, the last epoch counts.
        ([math.nan, math.nan, 0.5, math.nan], [True, True, True, False]),
    ],
)
def test_the_first_of_the_best_epochs_is_kept(scores: list[float], taken: list[bool]) -> None:
    best = Best()
    assert [best.update(epoch, score) for epoch, score in enumerate(scores, start=1)] == taken
    assert best.score == scores[best.epoch - 1]
