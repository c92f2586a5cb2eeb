"""The page of an audit: what it shows, and that it opens anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from medduet.reports.audit_page import MOST_ROWS, Picture, PicturePair, audit_page


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 30), np.uint8)
    mask[10:20, 10:20] = 1
    odd = "<script>alert('x')</script>" + "y" * 200
    first = Picture(rng.integers(0, 256, (40, 30), np.uint8), odd, "train", "a & b", mask)
    second = Picture(rng.integers(0, 256, (40, 30, 3), np.uint8), "two", "test", "b")
    rows = [{"id": f"{odd} {k}", "split": "train", "label": "<b>"} for k in range(MOST_ROWS + 1)]
    finding = {"kind": "k", "severity": "leak", "sentence": "1 leak <i>", "images": rows}
    record = {
        "name": "<u>set</u>",
        "images": {"train": 13, "val": 1, "test": 2},
        "classes": [{"name": "<em>", "train": 13, "val": 1, "test": 1}],
        "findings": [finding],
    }
    pair = PicturePair(first, second, 0.9754, False, ("in two splits", "masks differ"))
    path = tmp_path / "index.html"
    path.write_text(audit_page(record, [pair], 7, {0: [second]}))
    return path


def test_it_shows_what_was_found(page: Path) -> None:
    text = page.read_text()
    assert "1 leak &lt;i&gt;" in text
    assert "The first 12; all are in audit.json" in text
    assert "7 pairs, the worst first; 1 are shown here" in text
    assert "alike 0.975" in text
    assert "in two splits" in text
    assert text.count("data:image/png") == 3
    assert "13 (100.0%)" in text
    assert "50.0%" in text


def test_strangers_names_are_escaped_and_shortened(page: Path) -> None:
    text = page.read_text()
    for markup in ("<script", "<u>", "<em>", "<i>", "<b><"):
        assert markup not in text
    assert "a &amp; b" in text
    assert "y" * 80 not in text


def test_a_set_without_findings() -> None:
    record = {"name": "set", "images": {"train": 1}, "classes": [], "findings": []}
    text = audit_page(record, [], 0, {})
    assert "Nothing was found" in text
    assert "show the same" not in text


def test_a_mask_is_outlined() -> None:
    image, mask = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    plain, outlined = (Picture(image, "", "", "", m).source for m in (None, mask))
    assert plain != outlined


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_it_opens_in_a_browser_without_errors_requests_or_overflow(
    page: Path, tmp_path: Path, width: int
) -> None:
    measured = tmp_path / "measured.html"
    # A page may not scroll sideways; headless windows are at least 500 wide, a frame is not.
    frame = f'<iframe id="f" width="{width}" height="900" src="index.html"></iframe>'
    script = "const d = document.getElementById('f').contentDocument.documentElement;"
    script += "document.title = 'wide ' + (d.scrollWidth - d.clientWidth)"
    measured.write_text(f"<html>{frame}<script>onload = () => {{{script}}}</script></html>")
    log = tmp_path / "log.json"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--dump-dom"]
    options += ["--allow-file-access-from-files", "--virtual-time-budget=3000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", measured.as_uri()]
    done = subprocess.run(
        ["chromium", *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert "<title>wide 0</title>" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    hosts = set(re.findall(r'"url":"https?://([^/":]+)', log.read_text()))
    makers = re.compile(r"(^|\.)(google|googleapis|gvt1)\.com$")
    assert {host for host in hosts if not makers.search(host)} == set()
