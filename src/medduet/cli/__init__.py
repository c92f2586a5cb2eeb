"""The command line: reads what was typed, calls one function, prints."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

from medduet._version import __version__
from medduet.cli.commands import COMMANDS, HELP, RECIPES, complete, is_first, run
from medduet.cli.screen import Screen
from medduet.errors import ConfigError, Interrupted, MedDuetError, closest

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    screens: tuple[Any, Any] = Screen(sys.stdout), Screen(sys.stderr)
    with redirect_stdout(screens[0]), redirect_stderr(screens[1]):
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        try:
            code = _dispatch(*(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
            return code
        except MedDuetError as error:
            return _fail(error)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # the reader went away, as in `medduet datasets | head -1`
            return 0
        except OSError as error:
            reason = f"{error.filename or 'a file'}: {error.strerror or error}"
            return _fail(ConfigError(f"can't use {reason}; give another path, or make room"))
        except RuntimeError as error:
            if "home directory" not in str(error):
                raise
            reason = "no home folder is known: set MEDDUET_CACHE, and write paths without ~"
            return _fail(ConfigError(reason))
        finally:
            for stream in screens:
                try:
                    stream.flush()
                except OSError:  # what can't be written would fail again at the exit
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        with suppress(OSError):
            sys.stderr.write(f"medduet: {error}\n")  # in one line
    return INTERRUPTED if interrupted else USER_ERROR
