"""The command line: reads what was typed, calls one function, prints."""

import errno
import logging
import os
import sys
from collections.abc import Sequence

from medduet._version import __version__
from medduet.cli.commands import COMMANDS, HELP, RECIPES, complete, is_first, run
from medduet.errors import ConfigError, Interrupted, MedDuetError, StorageError, closest

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        code = _dispatch(*words)
        sys.stdout.flush()
        return code
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
        reason = f"can't use {error.filename}: {error.strerror}; give another path"
        return _fail(ConfigError(reason))


def _dispatch(name: str = "--help", *words: str) -> int:
    # The help of a command with recipes needs one, whose values it shows.
    if {"-h", "--help"} & {name, *(words[:1] if name in RECIPES else ())}:
        sys.stdout.write(HELP)
    elif name in ("-V", "--version"):
        sys.stdout.write(f"medduet {__version__}\n")
    elif name == "--tyro-print-completion":
        complete(list(words))
    elif name in COMMANDS:
        return run(name, list(words))
    else:
        raise ConfigError(f"unknown command '{name}': {closest(name, COMMANDS)}")
    return 0


def _fail(error: MedDuetError) -> int:
    interrupted = isinstance(error, Interrupted)
    if is_first() or not interrupted:
        sys.stderr.write(f"medduet: {error}\n")  # in one line
    return INTERRUPTED if interrupted else USER_ERROR
