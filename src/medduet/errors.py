"""Errors that MedDuet raises on purpose, each also one of Python's own.

Each message is one line: what was expected, what was given, and what to type. The command line
prints it without a traceback and exits with code 2. What it quotes may come from a stranger's file,
so it has no codes for the terminal and an end.
"""

import difflib
from collections.abc import Iterable

_COMPARED = 100  # characters of a name, which may be a stranger's, that are compared


class MedDuetError(Exception):
    """The root of all errors that MedDuet raises on purpose."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(MedDuetError, ValueError):
    """A setting that cannot be used."""


class DataError(MedDuetError, ValueError):
    """A data set that cannot be read or whose content contradicts itself."""


class DownloadError(MedDuetError, OSError):
    """A file that could not be fetched or did not match its checksum."""


class MissingFileError(MedDuetError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class ModelError(MedDuetError, ValueError):
    """A network that cannot be built, loaded or fed as asked."""


class StorageError(MedDuetError, OSError):
    """A disk that is full or cannot be written; what was there before is unchanged."""


class TrainingError(MedDuetError, RuntimeError):
    """A run that cannot go on."""


class Interrupted(TrainingError):  # noqa: N818  (an answer to a signal, not an error)
    """Training was asked to stop; everything up to the last step is saved."""


def one_line(text: str, longest: int = 4000) -> str:
    r"""Return `text` as one line of at most `longest` characters, all of them printable.

    Example:
        >>> one_line("a\n\x1b[31m b"), one_line("0123456789" * 3, 12)
        ('a ?[31m b', '01234 ... 89')
    """
    line = " ".join(text.split())
    if len(line) > longest:
        tail = longest // 5
        line = f"{line[: longest - tail - 5]} ... {line[-tail:]}"
    return "".join(each if each.isprintable() else "?" for each in line)


def closest(name: str, choices: Iterable[str], otherwise: str = "") -> str:
    """Return a sentence with the choices closest to `name`, or all, and what to do `otherwise`.

    Example:
        >>> closest("papr", ["demo", "paper"], "give a path")
        'did you mean paper? Or give a path'
    """
    names, name = sorted(choices), name[:_COMPARED]
    if near := difflib.get_close_matches(name, names, n=3, cutoff=0.7):
        return f"did you mean {' or '.join(near)}?" + (f" Or {otherwise}" if otherwise else "")
    return f"known: {', '.join(names) or 'none'}" + (f"; or {otherwise}" if otherwise else "")
