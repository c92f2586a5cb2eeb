"""The pages in a browser, wide and on a phone, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOOK = Path(__file__).with_name("look.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_every_page_can_be_read(site: Path, browser: Any, width: int, scheme: Any) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    found, seen = {}, 0
    for path in sorted(site.rglob("*.html")):
        if "_downloads" in path.parts or "_static" in path.parts:
            continue  # pages of their own
        page.goto(path.as_uri(), wait_until="load")
        said = page.evaluate(LOOK)
        seen += said["seen"]
        if page.evaluate("document.scrollingElement.scrollWidth > innerWidth"):
            said["found"].append("wider than the window")
        if said["found"]:
            found[path.name] = said["found"]
    page.close()
    assert not found
    assert not failed
    assert seen > 10_000


@pytest.mark.slow
def test_what_can_not_be_read_is_found(tmp_path: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    (tmp_path / "page.html").write_text(
        "<article style='background: #ddd'><p style='color: #888'>pale</p><p>plain</p>"
        "<img src='none.png'><div style='width: 200px; overflow: hidden'><pre>"
        f"{'x' * 99}</pre></div><table style='width: 500px'><tr><td>a</td></tr></table></article>"
    )
    page.goto((tmp_path / "page.html").as_uri())
    found = " ".join(page.evaluate(LOOK)["found"])
    page.close()
    for expected in ("2.61: pale", "no picture: file", "cut: DIV", "too wide: TABLE"):
        assert expected in found
    assert "plain" not in found
