"""Paired comparisons: the right numbers from the right tests, and errors in one line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

import medduet
from medduet import ConfigError
from medduet.cli import main
from medduet.metrics.paired import mcnemar, over_images
from medduet.metrics.roc import delong
from medduet.reports.compare import differences
from medduet.reports.grouping import group_runs
from medduet.runs.folder import find_runs, open_run
from medduet.utils.parsing import read_json

WriteRun = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
N = 60


def answers(seed: int, shift: float = 1.0) -> dict[str, Any]:
    """Three classes and one mask class; the truth is the same for every seed."""
    label = np.arange(N) % 3
    rng = np.random.default_rng(seed)
    scores = np.exp(rng.normal(size=(N, 3)) + shift * np.eye(3)[label])
    present = label[:, None] > 0
    nothing = np.where(rng.random((N, 1)) > 0.5, np.nan, 0)
    dice = np.where(present, np.clip(rng.normal(0.6, 0.2, (N, 1)), 0, 1), nothing)
    return {
        "label": label,
        "probability": scores / scores.sum(axis=1, keepdims=True),
        "dice": dice,
        "present": present,
        "mse": rng.random(N) / 10 + 0.01,
        "tasks": ["classify", "segment", "reconstruct"],
    }


def classes(seed: int, shift: float = 1.0) -> dict[str, Any]:
    return {key: answers(seed, shift)[key] for key in ("label", "probability")}


def corrected(p_values: list[float]) -> Any:
    return pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_every_row_is_its_test(write_run: WriteRun, tmp_path: Path) -> None:
    one, other = answers(1), answers(2, shift=3)
    perfect = np.eye(3)[one["label"]]  # of an epoch that is not compared
    a = write_run(tmp_path / "a", model="unet_var", test_selected=perfect, **one)
    b = write_run(tmp_path / "b", model="vovunet_var", **other)
    comparison = medduet.compare(a, b)
    rows = {row.metric: row for row in comparison.rows}
    assert list(rows) == ["accuracy", "auc", "dice_nonempty", "false_positive_rate", "mse"]
    metrics = [open_run(path).validation_selected["test"] for path in (a, b)]
    for key, row in rows.items():
        assert (row.mean_a, row.mean_b) == pytest.approx([part[key] for part in metrics])
        assert row.difference == pytest.approx(row.mean_a - row.mean_b)
    right = [x["probability"].argmax(axis=1) == x["label"] for x in (one, other)]
    by_mcnemar, accuracy = mcnemar(*right), rows["accuracy"]
    assert (accuracy.p, accuracy.interval) == (by_mcnemar.p, by_mcnemar.interval)
    assert accuracy.effect == by_mcnemar.effect
    assert rows["auc"].p == delong(one["label"], one["probability"], other["probability"]).p
    empty = ~one["present"][:, 0]
    drawn = [~np.isnan(run["dice"][empty, 0]) for run in (one, other)]
    assert rows["false_positive_rate"].interval == mcnemar(*drawn).interval
    lesion = one["present"][:, 0]
    of_lesions = over_images(one["dice"][lesion], other["dice"][lesion], resamples=2000)
    assert (rows["dice_nonempty"].p, rows["dice_nonempty"].n) == (of_lesions.p, 40)
    of_mse = over_images(one["mse"], other["mse"], resamples=2000)
    assert rows["mse"].interval == of_mse.interval
    assert [row.p_holm for row in rows.values()] == corrected([row.p for row in rows.values()])
    assert rows["auc"].p_holm > rows["auc"].p
    assert (comparison.a, comparison.b) == (str(a), str(b))
    claim = f"significantly higher than {a}: {b}."
    assert comparison.sentence == f"fakemnist, accuracy (n = {accuracy.n}): {claim}"
    assert comparison.skipped == ()
    back = medduet.compare(b, a)
    for row, turned in zip(comparison.rows, back.rows, strict=True):
        assert row.p == pytest.approx(turned.p, abs=0.01)
        assert row.difference == pytest.approx(-turned.difference)


def test_seeds_count_as_their_mean_and_methods_are_corrected(
    write_run: WriteRun, tmp_path: Path
) -> None:
    """Each seed of a method is paired with that seed of the reference."""
    shifts = {"vovunet_var": 1.5, "unet_var": 0.9, "timm:resnet18": 0.5}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in shifts}
    for place, (model, shift) in enumerate(shifts.items()):
        for seed in (0, 1, 2):
            runs[model].append(answers(seed + 10 * place, shift))
            write_run(tmp_path / f"{place}-{seed}", model=model, seed=seed, **runs[model][-1])
    rows = differences(group_runs(find_runs([tmp_path])).of("fakemnist"))
    label = runs["unet_var"][0]["label"]
    score: dict[str, Callable[[dict[str, Any]], Any]] = {
        "accuracy": lambda run: run["probability"].argmax(axis=1) == label,
        "auc": lambda run: run["probability"],
        "dice_nonempty": lambda run: run["dice"][run["present"]],
        "mse": lambda run: run["mse"],
    }
    for metric, of_run in score.items():
        of = {row.b: row for row in rows if row.metric == metric}
        assert {row.a for row in of.values()} == {"vovunet_var"}
        for model, row in of.items():
            a, b = (np.stack([of_run(run) for run in runs[name]]) for name in (row.a, model))
            test: Any = (
                delong(label, a, b)
                if metric == "auc"
                else over_images(a.mean(axis=0), b.mean(axis=0), resamples=2000)
            )
            assert row.difference == pytest.approx(test.difference)
            assert row.p == pytest.approx(test.p)
            assert row.interval == pytest.approx(test.interval)
            assert row.seeds.n == 3
            assert row.seeds.difference == pytest.approx(row.difference)
        assert [row.p_holm for row in of.values()] == corrected([row.p for row in of.values()])
        seeds = [row.seeds.p for row in of.values()]
        if not any(map(math.isnan, seeds)):
            assert [row.p_seeds_holm for row in of.values()] == corrected(seeds)


def test_equal_means_over_other_images_have_an_interval(
    write_run: WriteRun, tmp_path: Path
) -> None:
    label = np.arange(N) % 3
    for seed in (0, 1):
        for model, first in (("vovunet_var", 0), ("unet_var", 12)):
            said = np.where((np.arange(N) >= first) & (np.arange(N) < first + 12), label + 1, label)
            answer = {"label": label, "probability": 0.7 * np.eye(3)[said % 3] + 0.1}
            write_run(tmp_path / f"{model}-{seed}", model=model, seed=seed, **answer)
    row = differences(group_runs(find_runs([tmp_path])).of("fakemnist"))[0]
    assert (row.metric, row.difference, row.p) == ("accuracy", 0, 1)
    assert row.interval[0] < 0 < row.interval[1]


def test_what_one_run_lacks_is_skipped(write_run: WriteRun, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", **answers(1))
    sentence = medduet.compare(whole, whole).sentence
    assert sentence.endswith("): no significant difference (Holm-corrected p > 0.05).")
    environment = {"data": read_json(whole / "environment.json")["data"]}
    only = {key: answers(2)[key] for key in ("dice", "present")}
    masks = write_run(tmp_path / "masks", tasks=["segment"], environment=environment, **only)
    comparison = medduet.compare(whole, masks)
    assert [row.metric for row in comparison.rows] == ["dice_nonempty", "false_positive_rate"]
    assert comparison.skipped[0] == f"accuracy: only {whole} has it"
    assert len(comparison.skipped) == 3
    mse = answers(1)["mse"]
    rebuilt = write_run(tmp_path / "r", tasks=["reconstruct"], environment=environment, mse=mse)
    with pytest.raises(ConfigError, match="a task in common"):
        medduet.compare(masks, rebuilt)


def test_multi_label(write_run: WriteRun, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = (rng.random((N, 3)) < 0.5).astype(int)
    label[0, 1] = -1
    shares = [np.clip(rng.random((N, 3)) * 0.6 + 0.3 * label, 0, 1) for _ in range(2)]
    a, b = (
        write_run(tmp_path / str(i), label=label, probability=share, seed=i)
        for i, share in enumerate(shares)
    )
    row = medduet.compare(a, b).rows[0]
    metrics = [open_run(path).validation_selected["test"]["accuracy"] for path in (a, b)]
    assert (row.mean_a, row.mean_b) == pytest.approx(metrics)
    right = [(share > 0.5) == label for share in shares]
    test = over_images(*right, label >= 0, resamples=2000)
    assert (row.test, row.p, row.n) == ("permutation", test.p, N)


def test_other_data_is_refused(write_run: WriteRun, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", **classes(1))
    b = write_run(tmp_path / "b", data="othermnist", **classes(1))
    with pytest.raises(ConfigError, match="on the same data in the same split"):
        medduet.compare(a, b)


def test_the_command_prints_and_saves_it(
    write_run: WriteRun, tmp_path: Path, capsys: Capture
) -> None:
    a = write_run(tmp_path / "a", model="unet_var", **answers(1))
    b = write_run(tmp_path / "b", model="timm:resnet18", **answers(2))
    out = tmp_path / "new" / "both.json"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    comparison = medduet.compare(a, b)
    assert comparison.sentence in shown
    assert "One run each: differences between seeds are not taken into account." in shown
    assert "fakemnist, test split" in shown
    assert f"{comparison.rows[0].mean_a:.4f}" in shown
    written = read_json(out)
    assert [row["p"] for row in written["rows"]] == [row.p for row in comparison.rows]
    assert written["sentence"] == comparison.sentence
