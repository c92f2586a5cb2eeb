"""Reading what was typed, and what every command does around its work."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro
from pydantic import ValidationError

from medduet.config import describe, recipe_names
from medduet.errors import ConfigError


def parse(kind: Any, words: Sequence[str], program: str, **options: Any) -> Any:
    """Let tyro read `words`; its boxed findings become one line."""
    findings = io.StringIO()
    try:
        with contextlib.redirect_stderr(findings):
            return tyro.cli(kind, args=words, prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(findings.getvalue(), program)) from None
    except ValidationError as error:  # of settings that are part of several
        raise ConfigError(f"{describe(error)}; all options: {program} --help") from error


def _one_line(box: str, program: str) -> str:
    """Return the text of tyro's error box in one line."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    text = " ".join(line for line in lines if line.strip("-|+ "))  # of boxes in ASCII
    text = re.sub(r"(Argument helptext:|Got errors:|For full helptext).*", "", text)
    text = re.sub(r"For further information visit \S+", "", text)
    text = re.sub(r"\[type=.*?, input_value=(.*?), input_type=\w+\]", r"(got \1)", text)
    text = re.sub(r"\d+ validation errors? for \w+ ", "", text)
    text = re.sub(r"^(Value error|Parsing error|Unrecognized options|Invalid choice) +", "", text)
    # Of the options that tyro thinks were meant, only the names.
    text, _, near = text.partition("Perhaps you meant:")
    flags = list(dict.fromkeys(re.findall(r"--[a-z][\w.-]*", near)))
    hint = f"did you mean {' or '.join(flags[:3])}? " if flags else ""
    text = " ".join(text.split()).replace("Value error, ", "").rstrip(".")
    text = re.sub(
        r"^Error parsing (\w+): (\w+) Input should be (.*?) \(got (.*)\) *$",
        lambda found: (
            f"--{found[1]}.{found[2].replace('_', '-')} should be {found[3]}, given {found[4]}"
        ),
        text,
    )
    text = re.sub(
        r"^Error parsing (--[^ :]*): (?:invalid literal for int|could not convert string to float|"
        r"no type matching \S+ could be instantiated from)[^'\[]*[\['\"]*(.*?)['\"\]]* *$",
        r"expected a number after \1, given \2",
        text,
    )
    return f"{text}; {hint}all options: {program} --help"


def recipe_and_words(command: str, words: list[str], kind: str) -> tuple[str, list[str]] | Path:
    """Return the recipe of a `kind` and what follows it, or the folder to resume."""
    if words and words[0] == "--resume":
        if len(words) < 2 or (len(words) > 2 and kind != "grid"):
            raise ConfigError(
                f"expected one folder: medduet {command} --resume {kind.upper() or 'RUN'}"
            )
        return Path(words[1])
    if not words or words[0].startswith("-"):
        names = recipe_names(kind)
        raise ConfigError(
            f"expected a recipe ({', '.join(names)}, or a .yaml file) after '{command}': "
            f"medduet {command} {'honest' if 'honest' in names else names[0]} "
            f"--data{'sets' if kind == 'grid' else ''} NAME"
        )
    return words[0], words[1:]


@contextlib.contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM finish the step and save; a second one ends at once."""

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Say on a terminal that something happens while libraries are read, which takes seconds."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write("starting ...\r")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\x1b[2K\r")
        sys.stderr.flush()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep other libraries' warnings, about which a user can do nothing, off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
