"""The report: its numbers, its summary, and that its page opens anywhere."""

from __future__ import annotations

import csv
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

import medduet
from medduet import ConfigError, MissingFileError
from medduet.cli import main
from medduet.metrics.paired import over_sets
from medduet.metrics.roc import auc, auc_interval
from medduet.reports.grouping import group_runs
from medduet.reports.measures import measure
from medduet.reports.page import Section, Table, write_page
from medduet.runs.folder import find_runs

WriteRun = Callable[..., Path]
N, SEEDS = 60, (0, 1, 2)


def answers(seed: int, skill: float) -> dict[str, Any]:
    """Return labels and what a network of some skill might say of them."""
    truth = np.random.default_rng(7).integers(0, 3, N)
    rng = np.random.default_rng([seed, int(100 * skill)])
    logits = rng.normal(size=(N, 3)) + skill * np.eye(3)[truth]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # As they are read back from the CSV.
    dice = rng.uniform(0.2, 0.6, (N, 1)) + skill / 10
    return {"label": truth, "probability": probability, "dice": dice, "present": dice > 0.4}


@pytest.fixture(scope="module")
def grid(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks on three sets with three seeds; the first set is the paper's."""
    top = tmp_path_factory.mktemp("grid")
    skills = {"vovunet_var": 2.0, "unet_var": 1.8, "timm:resnet18": 0.4}
    for place, data in enumerate(("breastmnist", "small & <odd>", "third")):
        for model, skill in skills.items():
            for seed in SEEDS:
                given = answers(seed + 10 * place, skill)
                write_run(
                    top / "runs" / f"{place}-{model.replace(':', '-')}-{seed}",
                    data=data,
                    model=model,
                    seed=seed,
                    tasks=("classify", "segment"),
                    test_selected=answers(seed + 10 * place, skill + 0.5)["probability"],
                    protocol="paper",
                    environment={"network": {"parameters": 1_000_000, "gmacs": 1 + skill}},
                    **given,
                )
    (top / "cells").mkdir()
    (top / "grid.json").write_text("{}")
    failure = {"cell": "third-unet-seed0", "error": "<b>no</b> memory"}
    (top / "cells" / "third-unet-seed0.json").write_text(json.dumps(failure))
    return top


@pytest.fixture(scope="module")
def page(grid: Path) -> Path:
    return medduet.write_report([grid])


def rows(page: Path, name: str) -> list[dict[str, str]]:
    with (page.parent / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_is_mean_spread_and_wilson(page: Path) -> None:
    row = next(
        r for r in rows(page, "accuracy") if (r["dataset"], r["method"]) == ("third", "unet_var")
    )
    right = [
        (given["probability"].argmax(axis=1) == given["label"]).mean()
        for given in (answers(seed + 20, 1.8) for seed in SEEDS)
    ]
    assert float(row["mean"]) == pytest.approx(np.mean(right))
    assert float(row["sd"]) == pytest.approx(np.std(right, ddof=1))
    count = round(float(np.mean(right)) * N)
    low, high = proportion_confint(count, N, method="wilson")
    assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
    assert (row["n"], row["seeds"]) == ("60", "3")


def test_the_interval_of_auc_is_that_of_the_mean_over_seeds(grid: Path) -> None:
    runs = group_runs(find_runs([grid]))
    group = runs.groups["third", "timm:resnet18"]
    measured = measure(group, "auc")
    assert measured is not None
    given = [answers(seed + 20, 0.4) for seed in SEEDS]
    assert measured.values == pytest.approx([auc(g["label"], g["probability"]) for g in given])
    stacked = np.array([g["probability"] for g in given])
    assert measured.interval == pytest.approx(auc_interval(given[0]["label"], stacked))


def test_dice_counts_lesions_alone_where_it_says_so(grid: Path) -> None:
    group = group_runs(find_runs([grid])).groups["third", "unet_var"]
    lesion, every = measure(group, "dice_nonempty"), measure(group, "dice")
    assert lesion is not None
    assert every is not None
    given = [answers(seed + 20, 1.8) for seed in SEEDS]
    assert every.mean == pytest.approx(np.mean([g["dice"].mean() for g in given]))
    assert lesion.mean == pytest.approx(np.mean([g["dice"][g["present"]].mean() for g in given]))
    assert lesion.n < every.n == N
    low, high = lesion.interval
    assert low < lesion.mean < high


def test_selection_bias_is_test_selected_minus_validation_selected(page: Path) -> None:
    row = next(
        r for r in rows(page, "selection") if (r["dataset"], r["method"]) == ("third", "unet_var")
    )
    gaps = []
    for seed in SEEDS:
        honest, chosen = answers(seed + 20, 1.8), answers(seed + 20, 2.3)
        right = [each["probability"].argmax(axis=1) == each["label"] for each in (honest, chosen)]
        gaps.append(right[1].mean() - right[0].mean())
    assert float(row["bias"]) == pytest.approx(np.mean(gaps))
    assert (float(row["low"]), float(row["high"])) == pytest.approx((min(gaps), max(gaps)))


def test_data_sets_are_ranked_over_the_means(page: Path) -> None:
    scores = {(r["dataset"], r["method"]): float(r["mean"]) for r in rows(page, "accuracy")}
    methods = ["vovunet_var", "timm:resnet18", "unet_var"]
    sets = sorted({dataset for dataset, _ in scores})
    expected = over_sets([[scores[d, m] for m in methods] for d in sets])
    found = {(r["first"], r["second"]): float(r["p_holm"]) for r in rows(page, "sets-accuracy")}
    assert found == {
        (methods[p.first], methods[p.second]): pytest.approx(p.p_holm) for p in expected.pairs
    }


def test_tables_come_in_three_forms(page: Path) -> None:
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


def _has_latex() -> bool:
    if shutil.which("pdflatex") is None:
        return False
    found = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False)
    return found.returncode == 0


@pytest.mark.skipif(not _has_latex(), reason="needs pdflatex and booktabs")
def test_latex_compiles(page: Path, tmp_path: Path) -> None:
    tables = "\n\n".join(path.read_text() for path in page.parent.glob("tables/*.tex"))
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{tables}\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_figures_come_as_png_and_svg(page: Path) -> None:
    folder = page.parent / "figures"
    names = {path.stem for path in folder.glob("*.png")}
    assert {"accuracy", "auc", "dice_nonempty", "ranks-accuracy", "curves", "cost-third"} <= names
    for path in folder.glob("*.svg"):
        ElementTree.parse(path)
    assert {path.stem for path in folder.glob("*.svg")} == names


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
    assert "published" not in {path.stem for path in page.parent.glob("tables/*.csv")}
    splits = {"train": 546, "val": 78, "test": 156}
    data = {"name": "breastmnist", "splits": splits, "size": [224, 224], "fingerprint": "f"}
    for model in ("vovunet_var", "timm:resnet50"):
        run = write_run(
            tmp_path / model, data="breastmnist", model=model, size=224, **answers(0, 1.0)
        )
        environment = json.loads((run / "environment.json").read_text())
        environment["data"] |= data
        (run / "environment.json").write_text(json.dumps(environment))
    write_run(tmp_path / "mine", data="mine", **answers(1, 1.0))
    official = medduet.write_report([tmp_path])
    assert {row["dataset"] for row in rows(official, "accuracy")} == {"breastmnist", "mine"}
    published = rows(official, "published")
    ours = next(row for row in published if row["network"] == "vovunet_var")
    assert (ours["accuracy"], ours["protocol"].startswith("test-selected")) == ("88.46", True)
    svg = (official.parent / "figures" / "accuracy.svg").read_text()
    assert "published" in svg


@pytest.mark.slow
def test_runs_of_every_kind_make_a_page(write_run: WriteRun, tmp_path: Path) -> None:
    """Several labels, masks alone, a class that never occurs in test, no environment."""
    rng = np.random.default_rng(0)
    several = {"label": rng.integers(0, 2, (N, 3)), "data": "chest", "tasks": ("classify",)}
    alone = {"data": "masks", "tasks": ("segment",), "present": rng.random((N, 2)) > 0.3}
    absent = {"label": rng.integers(0, 2, N), "data": "absent"}
    for model in ("vovunet_var", "unet_var"):
        for seed in (0, 1):
            given = {"model": model, "seed": seed}
            name = f"{model}-{seed}"
            shares = rng.random((N, 3))
            write_run(tmp_path / f"s{name}", probability=shares, **several, **given)
            write_run(tmp_path / f"d{name}", dice=rng.random((N, 2)), **alone, **given)
            shares = shares / shares.sum(axis=1, keepdims=True)
            run = write_run(tmp_path / f"a{name}", probability=shares, **absent, **given)
            environment = json.loads((run / "environment.json").read_text())
            del environment["data"]["class_names"]
            (run / "environment.json").write_text(json.dumps(environment))
    page = medduet.write_report([tmp_path])
    assert {row["dataset"] for row in rows(page, "auc")} == {"chest"}
    assert {row["test"] for row in rows(page, "paired-chest") if row["metric"] == "accuracy"} == {
        "permutation"
    }
    assert not re.search(r"\bnan\b", re.sub(r'"data:[^"]*"', "", page.read_text()))
    group = group_runs(find_runs([tmp_path])).groups["masks", "unet_var"]
    lesion = measure(group, "dice_nonempty")
    assert lesion is not None
    low, high = lesion.interval
    assert low < lesion.mean < high


def test_what_is_not_a_report_is_not_removed(tmp_path: Path) -> None:
    section = Section("Accuracy", tables=[Table.of("accuracy", "Accuracy", [{"mean": "0.5"}])])

    def write() -> None:
        write_page(tmp_path, "report", [section], "medduet report")

    mine = tmp_path / "figures" / "mine.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    write()
    assert mine.read_text() == "mine"
    stale = tmp_path / "tables" / "stale.csv"
    stale.write_text("of a report before")
    left = [tmp_path / name for name in (".index.html.x.tmp", "figures/.a.png.x.tmp")]
    for path in left:
        path.write_text("of a report that was killed")
    mine = tmp_path / ".mine.tmp"
    mine.write_text("mine")
    write()
    assert not stale.exists()
    assert not any(path.exists() for path in left)
    assert mine.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["GRID", "--out", "FILE"], "can't use"),
        ([], "expected folders of runs: medduet report DIR"),
        (["nowhere"], "nowhere is not there"),
        (["GRID", "--reference", "unet_vra"], "unknown --reference 'unet_vra': did you mean unet_"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    grid: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"GRID": str(grid), "FILE": str(tmp_path / "file")}
    (tmp_path / "file").touch()
    assert main(["report", *(places.get(word, word) for word in words)]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1


def test_errors_are_of_their_kind(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        medduet.write_report([tmp_path])
    with pytest.raises(ConfigError):
        medduet.write_report([grid], tmp_path / "out", reference="nobody")
    assert not (tmp_path / "out").exists()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The page behind a server that notes what is asked of it."""
    asked: list[str] = []

    class Handler(_Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(page.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/index.html", asked
    server.shutdown()
    server.server_close()


def browse(address: str, profile: Path) -> tuple[str, list[str], set[str]]:
    """Open a page in Chromium; return what it became, its console, and the hosts it asked.

    What the browser itself asks of its maker is left out; the page names no such host.
    """
    log = profile.with_suffix(".json")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--log-net-log={log}"]
    options += [f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        ["chromium", *options, address], capture_output=True, text=True, timeout=120, check=False
    )
    hosts = set(re.findall(r'"url":"https?://([^/":]+)', log.read_text()))
    makers = re.compile(r"(^|\.)(google|googleapis|gvt1)\.com$")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, {host for host in hosts if not makers.search(host)}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser_without_errors_or_requests(
    served: tuple[str, list[str]], page: Path, tmp_path: Path
) -> None:
    address, asked = served
    content, console, hosts = browse(address, tmp_path / "profile")
    assert "</html>" in content
    assert (console, hosts, asked) == ([], {"127.0.0.1"}, ["/index.html"])
    # The same from the disk, with a click on the head of every table; and a page that is wrong.
    click = "<script>document.querySelectorAll('th button').forEach(b => b.click())</script>"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</html>", f"{click}</html>"))
    content, console, hosts = browse(clicked.as_uri(), tmp_path / "profile")
    assert 'aria-sort="ascending"' in content
    assert (console, hosts) == ([], set())
    wrong = tmp_path / "wrong.html"
    extra = '<main><img src="https://example.org/x"><script>nothing.there()</script>'
    wrong.write_text(page.read_text().replace("<main>", extra))
    _, console, hosts = browse(wrong.as_uri(), tmp_path / "profile")
    assert (len(console), hosts) == (1, {"example.org"})


def test_the_page_names_nothing_outside(page: Path) -> None:
    text = re.sub(r'"data:[^"]*"', '""', page.read_text())
    assert not re.search(r"https?://", text)
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"(?!data:|\")", text)
    sources = set(re.findall(r'src="([^"]*)"', text))
    assert sources <= {""}
