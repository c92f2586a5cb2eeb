"""The report: its numbers, its summary, and that its page opens anywhere."""

import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

import medduet
from medduet import ConfigError
from medduet.data.medmnist import medmnist_sets
from medduet.metrics.paired import holm, over_sets
from medduet.metrics.roc import auc, auc_interval
from medduet.reports.grouping import Group, group_runs, measure
from medduet.reports.page import Section, Table, write_page
from medduet.reports.report import all_published
from medduet.runs.folder import find_runs
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

WriteRun = Callable[..., Path]
N, SEEDS = 60, (0, 1, 2)


def answers(seed: int, skill: float) -> dict[str, Any]:
    """Return labels and what a network of some skill might say of them."""
    truth = np.random.default_rng(7).integers(0, 3, N)
    rng = np.random.default_rng([seed, int(100 * skill)])
    logits = rng.normal(size=(N, 3)) + skill * np.eye(3)[truth]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    dice = rng.uniform(0.2, 0.6, (N, 1)) + skill / 10
    return {"label": truth, "probability": probability, "dice": dice, "present": dice > 0.4}


def right(given: dict[str, Any]) -> np.ndarray:
    return np.asarray(given["probability"].argmax(axis=1) == given["label"])


@pytest.fixture(scope="module")
def grid(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks on three sets with three seeds; one cell failed."""
    top = tmp_path_factory.mktemp("grid")
    skills = {"vovunet_var": 2.0, "unet_var": 1.8, "timm:resnet18": 0.4}
    for place, data in enumerate(("breastmnist", "small & <odd>", "third")):
        for number, (model, skill) in enumerate(skills.items()):
            for seed in SEEDS:
                write_run(
                    top / "runs" / f"{place}-{number}-{seed}",
                    data=data,
                    model=model,
                    seed=seed,
                    tasks=("classify", "segment"),
                    test_selected=answers(seed + 10 * place, skill + 0.5)["probability"],
                    environment={"network": {"parameters": 1_000_000, "gmacs": 1 + skill}},
                    **answers(seed + 10 * place, skill),
                )
    write_json(top / "grid.json", {})
    failure = {"cell": "third-unet-seed0", "error": "<b>no</b> memory"}
    write_json(top / "cells" / "third-unet-seed0.json", failure)
    return top


@pytest.fixture(scope="module")
def page(grid: Path) -> Path:
    with pytest.raises(ConfigError, match="unknown --reference 'unet_vra': did you mean unet_"):
        medduet.write_report([grid], reference="unet_vra")
    return medduet.write_report([grid])


def table(page: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(page.parent / "tables" / f"{name}.csv")


def row(page: Path, name: str) -> pd.Series:
    """Return what a table says of unet_var on the third set."""
    rows = table(page, name)
    return rows[(rows["dataset"] == "third") & (rows["method"] == "unet_var")].iloc[0]


def group(folder: Path, dataset: str, method: str) -> Group:
    groups = group_runs(find_runs([folder])).of(dataset)
    return next(each for each in groups if each.method == method)


def test_scores_are_means_over_seeds_with_intervals_over_images(grid: Path, page: Path) -> None:
    found = row(page, "accuracy")
    shares = [right(answers(seed + 20, 1.8)).mean() for seed in SEEDS]
    assert found["mean"] == pytest.approx(np.mean(shares))
    assert found["sd"] == pytest.approx(np.std(shares, ddof=1))
    ends = proportion_confint(round(float(np.mean(shares)) * N), N, method="wilson")
    assert (found["low"], found["high"]) == pytest.approx(ends)
    assert (found["n"], found["seeds"]) == (N, 3)
    runs, given = group(grid, "third", "unet_var"), [answers(seed + 20, 1.8) for seed in SEEDS]
    measured, lesion, every = (measure(runs, key) for key in ("auc", "dice_nonempty", "dice"))
    assert measured.values == pytest.approx([auc(g["label"], g["probability"]) for g in given])
    expected = auc_interval(given[0]["label"], np.array([g["probability"] for g in given]))
    assert (measured.low, measured.high) == pytest.approx(expected)
    # Dice counts lesions alone where it says so.
    assert every.mean == pytest.approx(np.mean([g["dice"].mean() for g in given]))
    assert lesion.mean == pytest.approx(np.mean([g["dice"][g["present"]].mean() for g in given]))
    assert lesion.n < every.n == N
    assert lesion.low < lesion.mean < lesion.high


def test_selection_bias_is_test_selected_minus_validation_selected(page: Path) -> None:
    gaps = [
        right(answers(seed + 20, 2.3)).mean() - right(answers(seed + 20, 1.8)).mean()
        for seed in SEEDS
    ]
    found = row(page, "selection")[["bias", "low", "high"]].tolist()
    assert found == pytest.approx([np.mean(gaps), min(gaps), max(gaps)])


def test_data_sets_are_ranked_over_the_means(page: Path) -> None:
    methods = ["vovunet_var", "timm:resnet18", "unet_var"]
    scores = table(page, "accuracy").pivot(index="dataset", columns="method", values="mean")
    expected = over_sets(scores[methods].to_numpy())
    ranks = zip(expected.mean_ranks, methods, strict=True)
    assert ", ".join(f"{rank:.2f} for {method}" for rank, method in ranks) in page.read_text()
    found, pairs = table(page, "sets-accuracy"), list(combinations(range(3), 2))
    assert found["first"].tolist() == [methods[i] for i, _ in pairs]
    assert found["second"].tolist() == [methods[j] for _, j in pairs]
    gaps = [(scores[methods[i]] - scores[methods[j]]).mean() for i, j in pairs]
    assert found["difference"].tolist() == pytest.approx(gaps)
    assert found["p_holm"].tolist() == pytest.approx(holm([pair.p for pair in expected.pairs]))


def test_tables_come_in_three_forms_and_figures_in_two(page: Path) -> None:
    folder = page.parent / "tables"
    names = {path.stem for path in folder.glob("*.csv")}
    assert {"accuracy", "auc", "dice", "cost", "selection", "runs", "sets-auc"} <= names
    for suffix in ("md", "tex"):
        assert {path.stem for path in folder.glob(f"*.{suffix}")} == names
    latex = (folder / "accuracy.tex").read_text()
    assert "\\toprule" in latex
    assert "small \\& $<$odd$>$" in latex
    assert "±" not in latex
    markdown = (folder / "accuracy.md").read_text().splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    drawn = {path.stem for path in page.parent.glob("figures/*.png")}
    assert {"accuracy", "auc", "dice_nonempty", "curves"} <= drawn
    for path in page.parent.glob("figures/*.svg"):
        ElementTree.parse(path)
    assert {path.stem for path in page.parent.glob("figures/*.svg")} == drawn


def test_the_summary_says_what_is_significant(page: Path) -> None:
    text = page.read_text()
    assert "no significant difference (Holm-corrected p &gt; 0.05): 1 of 2 methods" in text
    assert "significantly lower than vovunet_var: timm:resnet18" in text
    assert "Failed: third-unet-seed0: &lt;b&gt;no&lt;/b&gt; memory" in text
    assert "small &amp; &lt;odd&gt;" in text
    assert "<odd>" not in text
    assert "the smallest possible p of a pair is 0.25" in text


def test_published_numbers_stand_beside_official_sets_alone(
    write_run: WriteRun, page: Path, tmp_path: Path
) -> None:
    assert not (page.parent / "tables" / "published.csv").exists()
    splits = {"train": 546, "val": 78, "test": 156}
    for model in ("vovunet_var", "unet_var"):
        given = {"data": "breastmnist", "model": model, "size": 64, **answers(0, 1.0)}
        facts = {"splits": splits, "info": {"original_size": [224, 224]}}  # that of the file
        write_run(tmp_path / model, environment={"data": facts}, **given)
    write_run(tmp_path / "mine", data="mine", **answers(1, 1.0))
    official = medduet.write_report([tmp_path])
    assert set(table(official, "accuracy")["dataset"]) == {"breastmnist", "mine"}
    ours = table(official, "published").set_index("network").loc["vovunet_var"]
    assert ours["accuracy"] == 88.46
    assert ours["protocol"].startswith("test-selected")


@pytest.mark.slow
def test_runs_of_every_kind_make_a_page(write_run: WriteRun, tmp_path: Path) -> None:
    """Several labels, masks alone, a class that never occurs in test, no class names."""
    rng = np.random.default_rng(0)
    several = {"label": rng.integers(0, 2, (N, 3)), "data": "chest", "tasks": ("classify",)}
    alone = {"data": "masks", "tasks": ("segment",), "present": rng.random((N, 2)) > 0.3}
    absent = {"label": rng.integers(0, 2, N), "data": "absent"}
    for model in ("vovunet_var", "unet_var"):
        for seed in (0, 1):
            given = {"model": model, "seed": seed}
            shares = rng.dirichlet(np.ones(3), N)
            write_run(tmp_path / f"s{model}-{seed}", probability=shares, **several, **given)
            write_run(tmp_path / f"d{model}-{seed}", dice=rng.random((N, 2)), **alone, **given)
            run = write_run(tmp_path / f"a{model}-{seed}", probability=shares, **absent, **given)
            environment = read_json(run / "environment.json")
            del environment["data"]["class_names"]
            write_json(run / "environment.json", environment)
    page = medduet.write_report([tmp_path])
    assert set(table(page, "auc")["dataset"]) == {"chest"}
    tests = table(page, "paired-chest")
    assert set(tests[tests["metric"] == "accuracy"]["test"]) == {"permutation"}
    assert not re.search(r"\bnan\b", re.sub(r'"data:[^"]*"', "", page.read_text()))
    lesion = measure(group(tmp_path, "masks", "unet_var"), "dice_nonempty")
    assert lesion is not None
    assert lesion.low < lesion.mean < lesion.high


def test_what_is_not_a_report_is_not_removed(tmp_path: Path) -> None:
    cells = pd.DataFrame([{"mean": "0.5"}])
    sections = [Section("Accuracy", tables=[Table("accuracy", "Accuracy", cells, cells)])]
    mine = [tmp_path / "figures" / "mine.png", tmp_path / ".mine.tmp"]
    stale = [tmp_path / name for name in (".index.html.x.tmp", "figures/.a.png.x.tmp")]
    (tmp_path / "figures").mkdir()
    for path in (*mine, *stale):
        path.touch()
    write_page(tmp_path, "report", sections, "medduet report")
    assert all(path.exists() for path in mine)
    stale.append(tmp_path / "tables" / "of-a-report-before.csv")
    stale[-1].touch()
    write_page(tmp_path, "report", sections, "medduet report")
    assert not any(path.exists() for path in stale)
    assert mine[1].exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser_without_errors_or_requests(page: Path, tmp_path: Path) -> None:
    """With a click on the head of every table; and a page that is wrong is noticed."""
    click = "<script>document.querySelectorAll('th button').forEach(b => b.click())</script>"
    wrong = '<main><img src="https://example.org/x"><script>nothing.there()</script>'
    for text, expected in (
        (page.read_text().replace("</html>", f"{click}</html>"), (0, set())),
        (page.read_text().replace("<main>", wrong), (1, {"example.org"})),
    ):
        shown, log = tmp_path / "shown.html", tmp_path / "net.json"
        shown.write_text(text)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--dump-dom"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
        done = subprocess.run(
            ["chromium", *options, shown.as_uri()], capture_output=True, text=True, check=True
        )
        # What the browser itself asks of its maker is left out; the page names no such host.
        hosts = set(re.findall(r'"url":"https?://([^/":]+)', log.read_text()))
        makers = re.compile(r"(^|\.)(google|googleapis|gvt1)\.com$")
        hosts = {host for host in hosts if not makers.search(host)}
        assert (done.stderr.count("CONSOLE"), hosts) == expected
        assert ('aria-sort="ascending"' in done.stdout) == (not hosts)


# Of VovUnet_Var, as two decimals of percent.
INTERVALS = {
    "bloodmnist": "98.34-99.09",
    "breastmnist": "82.50-92.57",
    "dermamnist": "75.17-78.85",
    "organamnist": "95.91-96.47",
    "organcmnist": "92.84-93.92",
    "organsmnist": "81.00-82.61",
    "pathmnist": "94.47-95.48",
    "pneumoniamnist": "93.22-96.61",
    "retinamnist": "52.36-62.01",
}


def test_intervals_follow_from_the_size_of_the_test_split() -> None:
    ours = all_published().query("network == 'vovunet_var'").set_index("dataset")
    found = {row.Index: f"{row.low:.2f}-{row.high:.2f}" for row in ours.itertuples()}
    assert found == INTERVALS
    official = medmnist_sets()
    for row in all_published().itertuples():
        assert row.splits == list(official[row.dataset].samples)
        assert row.low < row.accuracy < row.high


def test_all_tables_say_how_epochs_were_selected() -> None:
    protocols = all_published().set_index("dataset")["protocol"]
    assert (protocols.str.contains("selected") | (protocols == "no training")).all()
    assert protocols["bloodmnist"].iloc[:2].str.startswith("test-selected").all()
    notes = all_published().groupby("dataset")["notes"].first().map(" ".join)
    assert "74.2%" in notes["pneumoniamnist"]
    assert "74.2%" not in notes["bloodmnist"]
