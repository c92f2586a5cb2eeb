"""The command line: reads what was typed, calls one function, prints."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

from medduet._version import __version__
from medduet.cli.commands import COMMANDS, HELP, complete, run
from medduet.errors import ConfigError, Interrupted, MedDuetError, StorageError, closest

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _dispatch(words)
    except MedDuetError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as in `medduet datasets | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(StorageError(f"{error.filename or 'a disk'} is full: make room"))
        if error.filename is None:
            raise
        return _fail(
            ConfigError(f"can't use {error.filename}: {error.strerror}; give another path")
        )


def _dispatch(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
    elif name in ("-V", "--version"):
        sys.stdout.write(f"medduet {__version__}\n")
    elif name == "--tyro-print-completion":
        complete(rest)
    elif name not in COMMANDS:
        raise ConfigError(f"unknown command '{name}': {closest(name, COMMANDS)}")
    elif COMMANDS[name].recipes is not None and rest[:1] in (["-h"], ["--help"]):
        sys.stdout.write(HELP)  # its own help needs a recipe, whose values it shows
    else:
        return run(name, rest)
    return 0


def _fail(error: MedDuetError) -> int:
    if int(os.environ.get("RANK", "0")) == 0 or not isinstance(error, Interrupted):
        sys.stderr.write(f"medduet: {' '.join(str(error).split())}\n")
    return INTERRUPTED if isinstance(error, Interrupted) else USER_ERROR
