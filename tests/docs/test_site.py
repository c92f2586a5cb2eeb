"""The documentation builds without a warning, and its pages are whole and load nothing."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from medduet.cli.commands import COMMANDS, HELP

LOADED = {"script": "src", "link": "href", "img": "src", "source": "srcset", "iframe": "src"}


class Page(HTMLParser):
    """What a page loads, links to, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded, self.links, self.anchors = list[str](), list[str](), set[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if tag in LOADED and LOADED[tag] in found and found.get("rel") not in ("canonical", "next"):
            self.loaded.append(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.anchors |= {found["id"]} if "id" in found else set()


def is_elsewhere(address: str) -> bool:
    return bool(re.match(r"(?i)\s*(https?:|ftp:|//)", address))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for path in pages:
        loaded = Page(path).loaded
        assert not [address for address in loaded if is_elsewhere(address)], path
    for path in site.rglob("*.css"):
        found = r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)"
        addresses = re.findall(found, path.read_text())
        assert not [one for pair in addresses for one in pair if is_elsewhere(one)], path


def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path}: {link}"
            anchor = unquote(parts.fragment)
            if anchor and target in pages and target.name != "search.html":
                assert anchor in pages[target].anchors or anchor == "top", f"{path}: {link}"
            checked += 1
    assert checked > 500


def test_every_command_is_there_and_plain(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text()
    assert "\x1b" not in text
    commands = HELP.partition("RECIPE is")[0]
    listed = set(re.findall(r"^  ([a-z][a-z-]+) ", commands, re.MULTILINE))
    assert len(listed) == len(COMMANDS)
    for name in listed:
        assert f'id="medduet-{name}"' in text, name
        assert f"usage: medduet {name} " in text, name
