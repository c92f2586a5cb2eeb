"""What a report is made of, and its files."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from medduet.reports.style import save, slug
from medduet.reports.tables import Table
from medduet.utils.files import write_text


@dataclass
class Part:
    """A section of the page.

    Attributes:
        title: of it.
        text: paragraphs.
        tables: with their titles.
        figures: ``(name, what it shows, data URI, whether it may be inverted in the dark)``.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[str, str, str, bool]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Its place in the page."""
        return slug(self.title)


class Writer:
    """Writes tables and figures beside the page, and keeps the figures for it."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def table(self, part: Part, table: Table) -> None:
        """Add a table to a section, and write its three files."""
        part.tables.append(table)
        for suffix, text in (
            ("csv", table.csv()),
            ("md", table.markdown()),
            ("tex", table.latex()),
        ):
            write_text(self.out / "tables" / f"{table.name}.{suffix}", text)

    def figure(self, part: Part, name: str, figure: Figure | None, shows: str) -> None:
        """Add a figure to a section, and write it as PNG and SVG."""
        if figure is None:
            return
        for suffix in ("png", "svg"):
            save(figure, self.out / "figures" / f"{name}.{suffix}")
        self.picture(part, name, self.out / "figures" / f"{name}.svg", shows, dark=True)

    def picture(self, part: Part, name: str, path: Path, shows: str, *, dark: bool) -> None:
        """Add the picture in a file to a section."""
        kind = "svg+xml" if path.suffix == ".svg" else "png"
        content = base64.b64encode(path.read_bytes()).decode()
        part.figures.append((name, shows, f"data:image/{kind};base64,{content}", dark))
