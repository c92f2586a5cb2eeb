"""Lines and tables on the screen; names in them may be a stranger's, and have no codes for it."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from tabulate import tabulate

from medduet.errors import one_line


class Screen:
    """A stream whose texts have no codes for the terminal; standard output has no colours."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text` as far as it can be seen; bars write their moves of the cursor alone."""
        body = text.strip("\r")
        if not re.fullmatch(r"(\n|\x1b\[A)*", body):
            seen = (each if each.isprintable() or each in "\n\t" else "?" for each in body)
            text = text.replace(body, "".join(seen))
        return self.stream.write(text)

    def isatty(self) -> bool:
        """Return whether bars can be drawn, and texts coloured."""
        return self is sys.stderr and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def write(*lines: str, aligned: bool = False) -> None:
    """Print each line; `aligned` ones keep their spaces, and have no codes already."""
    for line in lines:
        sys.stdout.write((line if aligned else one_line(line)) + "\n")


def write_table(
    title: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Print a table of words, in the columns `left`, and numbers, in the columns `right`."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    sides = ["left"] * len(left) + ["right"] * len(right)
    text = tabulate(
        cells, [*left, *right], "simple", disable_numparse=True, colalign=sides if cells else None
    )
    sys.stdout.write(f"\n{one_line(title)}\n\n{text}\n\n")


def write_frame(title: str, table: Any) -> None:
    """Print a DataFrame of texts: words in the first column, numbers in the others."""
    write_table(title, list(table)[:1], list(table)[1:], table.to_numpy().tolist())
