"""A page of sections, with its tables and figures as files beside it."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from medduet._version import __version__
from medduet.reports.style import save, slug
from medduet.utils.files import sweep, write_text

_MARK = '<meta name="generator" content="medduet'
_LATEX = {"±": r"$\pm$", "≤": r"$\leq$", "−": "$-$", "⁶": "$^6$", "⁹": "$^9$", "·": r"$\cdot$"}
_LATEX |= {"<": "$<$", ">": "$>$"}


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        name: of its files.
        title: its caption.
        shown: the cells as text, with units and intervals.
        values: the same as plain numbers and words, for the CSV.
    """

    name: str
    title: str
    shown: pd.DataFrame
    values: pd.DataFrame

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        shown: Sequence[Mapping[str, str]],
        values: Sequence[Mapping[str, Any]] | None = None,
    ) -> Table:
        """Return the table of some rows; `values` are by default what is shown.

        Example:
            >>> table = Table.of("cost", "Cost", [{"GMAC": "0.10"}], [{"gmacs": 0.1}])
            >>> print(table.markdown(), end="")
            | GMAC   |
            |:-------|
            | 0.10   |
        """
        cells = pd.DataFrame(shown).fillna("")
        return cls(
            name, title, cells, cells if values is None else pd.DataFrame(values, dtype=object)
        )

    def csv(self) -> str:
        """Return the values as CSV, with every digit; what is not known is an empty cell."""
        return str(self.values.to_csv(index=False, lineterminator="\n"))

    def markdown(self) -> str:
        """Return the cells as a Markdown table."""
        escaped = self.shown.replace(r"\|", r"\\|", regex=True)
        return f"{escaped.to_markdown(index=False, disable_numparse=True)}\n"

    def latex(self) -> str:
        """Return the cells as a LaTeX tabular; it needs the package booktabs."""
        text = f"% {self.title}\n{self.shown.to_latex(index=False, escape=True)}"
        for sign, command in _LATEX.items():
            text = text.replace(sign, command)
        return text

    def html(self) -> str:
        """Return the cells as an HTML table, escaped."""
        return str(self.shown.to_html(index=False, border=0, justify="left", classes=[]))


class Picture(NamedTuple):
    """A figure of a report.

    Attributes:
        name: of its files.
        content: what is drawn, or the path of a PNG.
        caption: what it shows.
    """

    name: str
    content: Figure | Path
    caption: str


@dataclass
class Section:
    """A section of a page: paragraphs, then figures, then tables."""

    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def figure(self, name: str, content: Figure | Path | None, caption: str) -> None:
        """Add a figure, if there is one."""
        if content is not None:
            self.figures.append(Picture(slug(name), content, caption))

    @property
    def anchor(self) -> str:
        """Where links on the page lead to."""
        return slug(self.title)


def write_page(out: Path, title: str, sections: Sequence[Section], command: str) -> Path:
    """Write a page and, beside it, its tables and figures; return its path.

    The folder gets ``index.html``, which needs no other file and no network, ``tables/`` (CSV,
    Markdown, LaTeX) and ``figures/`` (PNG, SVG). Files of an earlier page there are removed, and
    nothing else. Sections without any content are left out.

    Args:
        out: the folder.
        title: of the page.
        sections: in order.
        command: that makes the page, such as ``"medduet report"``.
    """
    page, folders = out / "index.html", (out / "tables", out / "figures")
    sweep(page)
    earlier = page.is_file() and _MARK in page.read_text("utf-8", errors="replace")
    for folder in folders:
        sweep(folder)
        if earlier:
            shutil.rmtree(folder, ignore_errors=True)
    sections = [part for part in sections if part.text or part.tables or part.figures]
    sources: dict[str, str] = {}
    for section in sections:
        for table in section.tables:
            for suffix, text in (
                ("csv", table.csv()),
                ("md", table.markdown()),
                ("tex", table.latex()),
            ):
                write_text(out / "tables" / f"{table.name}.{suffix}", text)
        for picture in section.figures:
            sources[picture.name] = _source(picture, out / "figures")
    values = {"title": title, "sections": sections, "sources": sources, "command": command}
    write_text(page, render("report.html", **values))
    return page


def _source(picture: Picture, folder: Path) -> str:
    """Write a figure's files; return what an HTML image of it has as source."""
    path = picture.content
    if isinstance(path, Figure):
        for suffix in ("svg", "png"):
            save(path, folder / f"{picture.name}.{suffix}")
            path.set_layout_engine("none")  # laid out once for both
        path = folder / f"{picture.name}.svg"
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def render(template: str, **values: Any) -> str:
    """Return a template of this package filled with `values`, which are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medduet.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values, version=__version__)
