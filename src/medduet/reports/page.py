"""A page of sections, with its tables and figures as files beside it."""

import base64
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from medduet._version import __version__
from medduet.reports.style import save, slug
from medduet.utils.files import sweep, write_text
from medduet.utils.locks import result_folder
from medduet.utils.parsing import csv_text

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("medduet.reports"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MARK = '<meta name="generator" content="medduet'
_LATEX = {"±": r"$\pm$", "≤": r"$\leq$", "−": "$-$", "⁶": "$^6$", "⁹": "$^9$", "·": r"$\cdot$"}
_LATEX |= {"<": "$<$", ">": "$>$"}


class Table(NamedTuple):
    """A table: cells as text with units and intervals, and plain values with all digits as CSV."""

    name: str
    title: str
    shown: pd.DataFrame
    values: pd.DataFrame

    def files(self) -> dict[str, str]:
        """Return the contents of its files by suffix; LaTeX needs the package booktabs."""
        latex = f"% {self.title}\n{self.shown.to_latex(index=False, escape=True)}"
        for sign, command in _LATEX.items():
            latex = latex.replace(sign, command)
        escaped = self.shown.replace(r"\|", r"\\|", regex=True)
        return {
            "csv": csv_text(self.values),
            "md": f"{escaped.to_markdown(index=False, disable_numparse=True)}\n",
            "tex": latex,
        }


@dataclass
class Section:
    """A section of a page: paragraphs, then figures, then tables."""

    title: str
    text: list[str] = field(default_factory=list)
    figures: list[tuple[str, Figure, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a figure."""
        self.figures.append((slug(name), figure, caption))


def numbers(values: Iterable[float | None], spec: str) -> pd.Series:
    """Return numbers as text by a format; what is not known is empty."""
    texts = pd.Series(values, dtype=object).map(f"{{:{spec}}}".format, na_action="ignore")
    return texts.astype(object).fillna("")


def brackets(values: pd.DataFrame, spec: str) -> pd.Series:
    """Return the intervals from ``low`` to ``high`` after a space, nothing for undefined ones."""
    text = " (" + numbers(values["low"], spec) + " to " + numbers(values["high"], spec) + ")"
    return text.where(values["low"].notna(), "")


def write_page(out: Path, title: str, sections: Sequence[Section], command: str) -> Path:
    """Write a page and, beside it, its tables and figures; return its path.

    Files of an earlier page there are removed, and nothing else. Empty sections are left out.
    """
    page = result_folder(out) / "index.html"
    sweep(page)
    earlier = page.is_file() and _MARK in page.read_text("utf-8", errors="replace")
    for folder in (out / "tables", out / "figures"):
        sweep(folder)
        if earlier:
            shutil.rmtree(folder, ignore_errors=True)
    sections = [part for part in sections if part.text or part.tables or part.figures]
    for table in (table for section in sections for table in section.tables):
        for suffix, text in table.files().items():
            write_text(out / "tables" / f"{table.name}.{suffix}", text)
    sources = {
        name: _source(figure, out / "figures" / name)
        for section in sections
        for name, figure, _ in section.figures
    }
    values = {"title": title, "sections": sections, "sources": sources, "command": command}
    template = _TEMPLATES.get_template("report.html")
    write_text(page, template.render(slug=slug, version=__version__, **values))
    return page


def _source(figure: Figure, path: Path) -> str:
    """Write a figure's files; return what an HTML image of it has as source."""
    for suffix in ("svg", "png"):
        save(figure, path.with_name(f"{path.name}.{suffix}"))
        figure.set_layout_engine("none")  # laid out once for both
    content = path.with_name(f"{path.name}.svg").read_bytes()
    return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"


def say(macro: str, *values: Any) -> str:
    """Return what a macro of ``text.txt`` makes of `values`, on one line."""
    text = getattr(_TEMPLATES.get_template("text.txt").module, macro)(*values)
    return " ".join(text.split()).strip(";")
