"""Searches: what is found, what is pruned, and that nothing is lost when one is stopped."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import medduet
from medduet import (
    ConfigError,
    Interrupted,
    MissingFileError,
    SearchConfig,
    SearchRecord,
    TrainingError,
)
from medduet.cli import main
from medduet.config import validate
from medduet.experiments.config import by_path
from medduet.training.reporter import Reporter
from medduet.utils.locks import is_held
from medduet.utils.parsing import read_json

Capture = pytest.CaptureFixture[str]


def config(out: Path, **changes: Any) -> SearchConfig:
    values: dict[str, Any] = {
        "run": {
            "data": {"name": "phantom", "size": 16, "count": 40},
            "model": {"name": "adares_unet"},
            "objective": {"tasks": ["classify", "segment"]},
            "train": {"epochs": 2, "batch_size": 16},
            "evaluate": {"bootstrap": 100},
        },
        "space": {
            "model.width": {"choices": [2, 3, 4]},
            "model.activation": {"choices": ["relu", "elu"]},
            "train.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
        },
        "trials": 6,
        "population": 3,
        "out": str(out),
    }
    return validate(SearchConfig, values | changes, "a test")


def told(record: SearchRecord) -> list[dict[str, Any]]:
    """The trials, without what depends on the clock or the place."""
    clock = ("seconds", "recipe")
    return [{key: trial[key] for key in trial if key not in clock} for trial in record.trials]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SearchRecord:
    return medduet.search(config(tmp_path_factory.mktemp("found") / "search"))


def test_what_a_search_leaves(found: SearchRecord) -> None:
    assert [trial["number"] for trial in found.trials] == [1, 2, 3, 4, 5, 6]
    for trial in found.trials:
        assert trial["state"] == "finished"
        run = found.path / "trials" / f"{trial['number'] - 1:04d}"
        settings = by_path(read_json(run / "config.json"))
        assert {path: settings[path] for path in trial["values"]} == trial["values"]
        assert 1e-3 <= settings["train.learning_rate"] <= 1e-2
        rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
        assert trial["score"] == max(row["val"]["score"] for row in rows)
        assert trial["parameters"] == sum(p.numel() for p in medduet.load(run).parameters())
    best = max(found.trials, key=lambda trial: (trial["score"], -trial["parameters"]))
    assert best["number"] == found.front[-1]["number"]
    costs = [(trial["parameters"], trial["score"]) for trial in found.front]
    assert costs == sorted(costs)
    assert costs[0][0] == min(trial["parameters"] for trial in found.trials)
    assert len(list((found.path / "recipes").iterdir())) == len(costs)
    assert read_json(found.path / "trials.json") == found.trials
    assert (found.path / "pareto.png").read_bytes()[1:4] == b"PNG"


class StopAt(Reporter):
    """Does something after so many steps, over all trials."""

    def __init__(self, act: Callable[[], object], step: int) -> None:
        self.act, self.left = act, step

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def test_a_stopped_search_goes_on_as_if_it_had_not_been(
    found: SearchRecord, tmp_path: Path
) -> None:
    out = tmp_path / "search"
    stop = threading.Event()
    with pytest.raises(Interrupted, match=f"trial 3 of 6.*medduet search --resume {out}"):
        medduet.search(config(out), reporter=StopAt(stop.set, 9), stop=stop)
    assert told(medduet.search(resume=out)) == told(found)
    assert told(medduet.search(resume=out)) == told(found), "once more, with nothing to do"


def test_a_killed_search_goes_on(
    found: SearchRecord, tmp_path: Path, capsys: Capture, medduet_command: list[str]
) -> None:
    recipe, out = tmp_path / "search.yaml", tmp_path / "search"
    recipe.write_text(config(out).model_dump_json())
    with subprocess.Popen([*medduet_command, "search", str(recipe)]) as process:
        deadline = time.monotonic() + 120
        while not (out / "trials" / "0001" / "epochs.jsonl").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert main(["search", "--resume", str(out)]) == 2
        assert f"works on the search in {out}" in capsys.readouterr().err
        process.kill()
    while is_held(out / "lock"):  # the process ends a moment after what stands for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert main(["search", "--resume", str(out)]) == 0
    shown = capsys.readouterr()
    assert "trial 6 of 6 finished" in shown.err
    assert "Pareto front of 6 trials" in shown.out
    assert f"medduet train {out}/recipes/front-1.yaml --out RUN" in shown.out
    assert told(medduet.search(resume=out)) == told(found)


def test_a_trial_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    # A kernel of even size is refused by the network.
    space = {"model.kernel_size": {"choices": [2, 3]}}
    record = medduet.search(config(tmp_path / "a", space=space, trials=5))
    for trial in record.trials:
        even = trial["values"]["model.kernel_size"] == 2
        assert trial["state"] == ("failed" if even else "finished")
        assert ("odd kernel_size" in trial.get("error", "")) == even
    assert {trial["state"] for trial in record.trials} == {"failed", "finished"}
    space = {"model.kernel_size": {"choices": [2, 4]}}
    with pytest.raises(TrainingError, match=r"all trials failed: .*odd kernel_size"):
        medduet.search(config(tmp_path / "b", space=space, trials=2))


def test_searches_that_cannot_start(found: SearchRecord, tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(ConfigError, match=f"medduet search --resume {found.path}"):
        medduet.search(config(found.path))
    with pytest.raises(MissingFileError, match=r"search\.json"):
        medduet.search(resume=tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean model\.width"):
        config(tmp_path / "search", space={"model.widht": {"choices": [1, 2]}})
    with pytest.raises(ConfigError, match="low < high"):
        config(tmp_path / "search", space={"model.width": {"low": 3, "high": 2}})
    for mistake, word in (("search adres", "did you mean adares"), ("search adares", "--data")):
        assert main(mistake.split()) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert word in line


def test_on_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "search"
    words = (
        f"search adares --data phantom --size 16 --run.data.count 40 --epochs 1 --trials 2 "
        f"--population 2 --cost gmacs --seed 3 --out {out}"
    )
    assert main(words.split()) == 0
    shown = capsys.readouterr()
    assert "trial 2 of 2" in shown.err
    assert "GMAC" in shown.out
    settings = read_json(out / "search.json")
    assert (settings["cost"], settings["run"]["train"]["seed"]) == ("gmacs", 3)
