"""The pages in a browser: on a phone's width nothing is wider than the window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


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
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_phone(site: Path, browser: Any, scheme: Any) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    wide = {}
    for path in sorted(site.rglob("*.html")):
        if "_downloads" in path.parts or "_static" in path.parts:
            continue  # pages of their own
        page.goto(path.as_uri(), wait_until="load")
        width = page.evaluate("document.scrollingElement.scrollWidth")
        if width > page.evaluate("innerWidth"):
            wide[path.name] = width
    page.close()
    assert not wide
    assert not failed


@pytest.mark.slow
def test_text_can_be_read_in_both_schemes(site: Path, browser: Any) -> None:
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((site / "data.html").as_uri())
        colours = page.evaluate(
            "[document.querySelector('article p'), document.body].map(x => getComputedStyle(x))"
            ".map((x, i) => (i ? x.backgroundColor : x.color).match(/[0-9.]+/g).map(Number))"
        )
        page.close()
        text, ground = (brightness(colour) for colour in colours)
        ratio = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        assert ratio > 7, scheme  # WCAG's AAA


def brightness(colour: list[float]) -> float:
    """Return the relative luminance that WCAG 2 defines."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
