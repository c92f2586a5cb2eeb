"""How runs are sorted into methods, and what the methods are called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medduet.reports.grouping import Runs, group_runs
from medduet.runs.folder import find_runs
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

Make = Callable[..., None]


@pytest.fixture
def make(write_run: Callable[..., Path], tmp_path: Path) -> Make:
    """Write a run with these changes to its settings and its data."""

    def write(name: str, data: dict[str, Any] | None = None, **given: Any) -> None:
        changes = given.pop("changes", {})
        given |= {"label": [0, 1], "probability": [[0.9, 0.1], [0.2, 0.8]]}
        decided = {"decisions": [{"setting": path} for path in given.pop("decided", ())]}
        environment = {"data": data or {}, "training": decided}
        run = write_run(tmp_path / name, environment=environment, **given)
        config = read_json(run / "config.json")
        for section, values in changes.items():
            config[section] |= values
        write_json(run / "config.json", config)

    return write


def grouped(tmp_path: Path, reference: str | None = None) -> Runs:
    return group_runs(find_runs([tmp_path]), reference)


def test_seeds_are_one_method(make: Make, tmp_path: Path) -> None:
    for seed in (2, 0, 10):
        timed = {"time_budget": "1h", "epochs": 5 + seed}  # as fast as the machine was
        changes = {"train": {"device": f"cuda:{seed}"} | timed}
        if seed:  # what an older version lacked makes no method
            changes["objective"] = {"balance": "sum"}
        make(f"run{seed}", seed=seed, changes=changes, decided=["train.epochs"])
    runs = grouped(tmp_path)
    assert (runs.datasets, runs.methods) == (["fakemnist"], ["vovunet_var"])
    assert runs.of("fakemnist")[0].seeds == [0, 2, 10]


def test_methods_are_named_after_what_differs(make: Make, tmp_path: Path) -> None:
    for tasks in (("classify",), ("classify", "segment")):
        for rate in (0.1, 0.2):
            name = f"{len(tasks)}-{rate}"
            make(name, tasks=tasks, changes={"train": {"learning_rate": rate, "grad_clip": 1.0}})
    assert grouped(tmp_path).methods == [
        "classify · learning rate 0.1",
        "classify · learning rate 0.2",
        "classify+segment · learning rate 0.1",
        "classify+segment · learning rate 0.2",
    ]


def test_what_follows_from_network_or_data_is_not_named(make: Make, tmp_path: Path) -> None:
    for data, epochs in (("a", 5), ("b", 9)):
        for model, width in (("unet_var", 8), ("adares_unet", 4)):
            make(
                f"{data}-{model}",
                data={"name": data, "fingerprint": data},
                model=model,
                changes={"train": {"epochs": epochs}, "model": {"width": width}},
            )
    runs = grouped(tmp_path, reference="unet_var")
    assert (runs.datasets, runs.methods) == (["a", "b"], ["unet_var", "adares_unet"])


def test_the_reference_comes_first_then_the_papers_network_then_the_defaults(
    make: Make, tmp_path: Path
) -> None:
    for model in ("adares_unet", "vovunet_var", "unet_var"):
        make(model, model=model)
    assert grouped(tmp_path).methods == ["vovunet_var", "adares_unet", "unet_var"]
    assert grouped(tmp_path, "unet_var").methods[0] == "unet_var"
    for balance in ("pcgrad", "sum", "uncertainty"):  # the first is of an older version
        make(f"with-{balance}", model="unet_var", changes={"objective": {"balance": balance}})
    names = [name for name in grouped(tmp_path).methods if name.startswith("unet_var · ")]
    assert [name.partition(" · ")[2] for name in names] == ["sum", "pcgrad", "uncertainty"]


def test_data_sets_of_one_name_are_told_apart(make: Make, tmp_path: Path) -> None:
    make("a", data={"size": [28, 28], "fingerprint": "f1"})
    make("b", data={"size": [64, 64], "fingerprint": "f1"})
    make("c", data={"size": [64, 64], "fingerprint": "f2"})
    make("d", data={"name": "other"})
    assert grouped(tmp_path).datasets == [
        "fakemnist, 28 x 28",
        "fakemnist, 64 x 64, f1",
        "fakemnist, 64 x 64, f2",
        "other",
    ]


def test_a_run_that_repeats_another_is_named(make: Make, tmp_path: Path) -> None:
    make("first")
    make("second")
    runs = grouped(tmp_path)
    assert len(runs.notes) == 1
    assert runs.notes[0].startswith("second duplicates first (same settings and seed)")
    assert runs.of("fakemnist")[0].first.path.name == "first"
