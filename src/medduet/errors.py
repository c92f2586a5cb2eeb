"""Errors that MedDuet raises on purpose.

::

    MedDuetError
    ├── ConfigError        a setting that cannot be used            (also a ValueError)
    ├── DataError          a data set that cannot be trusted        (also a ValueError)
    ├── DownloadError      a file that could not be fetched         (also an OSError)
    ├── MissingFileError   a file or folder that is not there       (also a FileNotFoundError)
    ├── ModelError         a network that cannot be built or loaded (also a ValueError)
    └── TrainingError      a run that cannot go on                  (also a RuntimeError)

Each message is one line: what was expected, what was given, and what to type. The command line
prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedDuetError(Exception):
    """The root of all errors that MedDuet raises on purpose."""


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


class TrainingError(MedDuetError, RuntimeError):
    """A run that cannot go on."""


def closest(name: str, known: Iterable[str], count: int = 5) -> str:
    """Return ``"did you mean a, b?"`` with the closest known names, or all of them.

    Example:
        >>> closest("vovunet", ["vovunet_var", "unet_var"], count=1)
        'did you mean vovunet_var?'
        >>> closest("zzz", ["a", "b"])
        'known: a, b'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
