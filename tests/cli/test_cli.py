"""The command line: what works as it stands, and one line for what doesn't."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medduet
from medduet import MODELS, RunConfig, RunRecord, recipe_names
from medduet.cli import main
from medduet.cli.display.results import show
from medduet.data.medmnist import medmnist_sets
from medduet.utils.parsing import read_json

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def set_npz(tmp_path: Path) -> Path:
    """A phantom set as a file of one's own, in the layout of MedMNIST with masks."""
    images, arrays = medduet.open_images("phantom", size=32, count=40), {}
    for name in ("train", "val", "test"):
        split = images.split(name)
        arrays[f"{name}_images"] = split.images
        arrays[f"{name}_labels"] = split.labels[:, None].astype(np.uint8)
        arrays[f"{name}_masks"] = split.masks
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def test_the_issue_s_example(set_npz: Path, capsys: Capture) -> None:
    run = set_npz.parent / "RUN"
    words = (
        f"train auto --data {set_npz} --size 64 --model vovunet_var --model.width 2 "
        f"--tasks classify segment --epochs 1 --lr 1e-3 --seed 0 --out {run}"
    )
    assert main(words.split()) == 0
    shown = capsys.readouterr()
    assert "validation-selected" in shown.out
    assert f"run: {run}\n" in shown.out
    assert "epoch   1/1" in shown.err
    config = read_json(run / "config.json")
    assert (config["data"]["size"], config["train"]["learning_rate"]) == ([64], 1e-3)
    assert config["objective"]["tasks"] == ["classify", "segment"]
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    shown = capsys.readouterr().out
    assert "val, n = 4" in shown
    written = Path(shown.partition("written: ")[2].strip())
    assert (written / "metrics.json").is_file()
    found = read_json(run / "evaluations" / "set-val" / "metrics.json")["val"]
    assert found == read_json(run / "metrics.json")["val"]
    assert main(["train", "--resume", str(run)]) == 0
    assert "finished already" in capsys.readouterr().err


def test_what_comes_next_can_be_typed(capsys: Capture) -> None:
    assert show("zarr", "SET.zarr", {}) == 0
    assert capsys.readouterr().out.endswith("next: medduet train auto --data SET.zarr\n")


def test_short_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[RunConfig] = []

    def note(config: RunConfig, **others: object) -> RunRecord:
        seen.append(config)
        raise medduet.ConfigError("seen")

    monkeypatch.setattr("medduet.experiments.run.train", note)
    flags = (
        "--data phantom --model unet_var --size 48 --tasks segment classify --epochs 3 "
        "--batch-size 6 --lr 3e-4 --seed 9 --device cpu --precision bf16-mixed "
        f"--out {tmp_path / 'run'} --model.width 5 --train.grad-clip None --data.count 30"
    )
    for words in (["demo"], ["train", "auto"]):
        assert main([*words, *flags.split()]) == 2
        config, before = seen.pop(), medduet.load_recipe(words[-1])
        data = before.data.model_copy(update={"name": "phantom", "size": (48,), "count": 30})
        train = {"epochs": 3, "batch_size": 6, "learning_rate": 3e-4, "seed": 9, "device": "cpu"}
        train |= {"precision": "bf16-mixed", "grad_clip": None}
        assert config.data == data
        assert config.model == before.model.model_copy(update={"name": "unet_var", "width": 5})
        assert config.objective.tasks == ("classify", "segment")
        assert config.train == before.train.model_copy(update=train)
        assert (config.out, config.evaluate) == (tmp_path / "run", before.evaluate)


MISTAKES = [
    ("trian", ["unknown command 'trian'", "train"]),
    ("train papr", ["unknown recipe 'papr'", "paper"]),
    ("train", ["expected a recipe", "auto"]),
    ("train auto", ["--data"]),
    ("train auto --data phantom --epoch 3", ["--epoch", "--epochs"]),
    ("train auto --data BlodMNIST", ["BlodMNIST", "did you mean bloodmnist"]),
    ("train auto --data phantom --model vovunet", ["vovunet", "vovunet_var"]),
    ("train auto FOLDER", ["given 'FOLDER': medduet train auto --data FOLDER"]),
    ("train auto --resume RUN", ["expected one folder: medduet train --resume RUN"]),
    ("train --resume nothing --epochs 3", ["what is resumed keeps its settings"]),
    ("benchmark quick --datasets blodmnist", ["did you mean bloodmnist"]),
    ("benchmark quick --networks vovnet", ["unknown network 'vovnet': the closest are"]),
    ("benchmark quick --workers 0", ["--workers: Input", ", given 0"]),
    ("train auto --data phantom --device cpu:3", ["expected auto, cpu, ", "given 'cpu:3'"]),
    ("train auto --data phantom --data.split x", ["split: expected auto, given, made or a .csv"]),
    ("train --resume nothing", ["nothing", "config.json"]),
    ("compare RUN", ["Missing from medduet compare: RUN_B run-b;"]),
    ("evaluate nothing --size 64", ["expected --data NAME with options of the data (size)"]),
    ("compare nothing nowhere", ["expected a finished run", "nothing is none"]),
    ("report nowhere", ["nowhere is not there"]),
    ("serve", ["expected one network or more"]),
    ("audit phantom --fix split.txt", ["expected --fix FILE.csv, given split.txt"]),
    ("preview phantom --out a.jpg", [".png"]),
    ("demo --epochs tre", ["expected a number after --epochs", "given tre"]),
    ("preview phantom --spacing 2 x", ["after --spacing/--data.spacing, given 2 x;"]),
    ("preview phantom --data.window 4", ["two numbers, zscore or own after --data.window"]),
    ("preview phantom --data.skip-broken", ["--data.skip-broken is for"]),
    ("preview phantom --data.fold 1", ["expected --data.folds above --data.fold"]),
]


def one_line(capsys: Capture) -> str:
    shown = capsys.readouterr()
    assert shown.err.startswith("medduet: "), shown.err
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1, shown.err
    assert not set("│╭╰") & set(shown.err)
    return shown.err


@pytest.mark.parametrize(("words", "wanted"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_gives_one_line(
    words: str,
    wanted: list[str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    line = one_line(capsys)
    for text in wanted:
        assert text in line.removeprefix("medduet: ")
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.slow
def test_every_set_and_network_is_listed(capsys: Capture) -> None:
    for command, names in (("datasets", ("phantom", *medmnist_sets())), ("models", MODELS)):
        assert main([command]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in names)
        assert command == "datasets" or "35,931,723" in shown


def test_help(capsys: Capture) -> None:
    for words in ([], ["--help"], ["train", "--help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in recipe_names())


def test_help_imports_no_torch() -> None:
    for command in ("evaluate", "audit", "train auto"):
        run = "try: medduet.cli.main(sys.argv[1:])\nfinally: print(*sys.modules)"
        script = f"import sys, medduet.cli\n{run}"
        words = [sys.executable, "-c", script, *command.split(), "--help"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert f"usage: medduet {command} " in done.stdout
        assert not {"torch", "pandas"} & set(done.stdout.splitlines()[-1].split())
