"""A library function as a command: its parameters are read from the words by tyro."""

import ast
import contextlib
import inspect
import io
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_type_hints

import tyro
from pydantic import BaseModel, TypeAdapter, ValidationError

from medduet.config import DataConfig, describe
from medduet.errors import ConfigError

FILLED = ("progress", "reporter", "stop", "watch")  # by the command line itself
# What is reworded: errors of pydantic, and of numbers.
_PYDANTIC = re.compile(
    r"Error parsing config\.(\S+): .*? for \w+ ([a-z]\S* )?(?:Value error, )?(.*?) \[type=.*?"
    r"input_value=(.*?), input_type.*"
)
_NUMBER = re.compile(
    r"Error parsing (\S+): (?:invalid literal|could not convert|no type matching)"
    r"(?:.*\[|[^']*)'(.*)'.*"
)


def signature_of(name: str) -> Callable[..., Any]:
    """Return a function with the docstring of ``module:name`` and the parameters to be typed.

    Importing the module would import torch; only what these name is executed.
    """
    module, _, function = name.partition(":")
    spec = find_spec(f"medduet.{module}")
    assert spec is not None
    needed, statements = {function}, list[ast.stmt]()
    for each in reversed(ast.parse(Path(str(spec.origin)).read_text("utf-8")).body):
        if isinstance(each, ast.FunctionDef) and each.name == function:
            pairs = zip(each.args.kwonlyargs, each.args.kw_defaults, strict=True)
            typed = [(name, default) for name, default in pairs if name.arg not in FILLED]
            each.args.kwonlyargs = [name for name, _ in typed]
            each.args.kw_defaults = [default for _, default in typed]
            each.returns, each.body = None, each.body[:1]
        elif isinstance(each, ast.Import | ast.ImportFrom):
            each.names = [alias for alias in each.names if (alias.asname or alias.name) in needed]
            if not each.names:
                continue
        elif not isinstance(each, ast.Assign) or not _names(*each.targets) & needed:
            continue
        needed |= _names(each)
        statements.insert(0, each)
    space: dict[str, Any] = {"__name__": spec.name}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + statements, []), str(spec.origin), "exec"), space)
    return space[function]  # type: ignore[no-any-return]


def _names(*nodes: ast.AST) -> set[str]:
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}


def parse(
    function: Callable[..., Any],
    words: Sequence[str],
    program: str,
    *,
    default: BaseModel | None = None,
    omit: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the arguments of a function that `words` name; ConfigError in one line.

    The words change some of the settings in `default`; parameters in `omit` can't be typed.
    """
    if next(iter(get_type_hints(function).values()), None) is DataConfig:
        program += " DATA"
        if words and not words[0].startswith("-"):
            words = ["--data.name", *words]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            values = tyro.cli(parser_of(function, default, omit), args=words, prog=program)
        return _check(function, values)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(box.getvalue(), program)) from None
    except ValidationError as error:  # of settings without a prefix
        text = f"--{describe(error)}".removeprefix("--top level: ")
        raise ConfigError(f"{text}; all options: {program} --help") from error


def parser_of(
    function: Callable[..., Any], default: BaseModel | None = None, omit: Sequence[str] = ()
) -> Callable[..., dict[str, Any]]:
    """Return a function for tyro: it has the parameters of `function` and returns their values.

    Parameters before the ``*`` without a default are positional, but for ``out``. Images are
    always given by ``--data``, settings of other kinds without a prefix.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = []
    for name, each in inspect.signature(function).parameters.items():
        if name in omit:
            continue
        kind, value = cast(Any, hints[name]), each.default
        classes = [c for c in (kind, *get_args(kind)) if inspect.isclass(c)]
        if DataConfig in classes:
            kind = Annotated[DataConfig, tyro.conf.arg(name="data")]
            value = DataConfig()
        elif settings := [c for c in classes if issubclass(c, BaseModel)]:
            kind = Annotated[settings[0], tyro.conf.arg(name="")]
            value = value or default or settings[0]()
        elif each.kind is not each.KEYWORD_ONLY and value is each.empty and name != "out":
            kind = tyro.conf.Positional[kind]  # type: ignore[valid-type, misc]
            kind = Annotated[kind, tyro.conf.arg(metavar=name.upper())]
        parameters.append(each.replace(kind=each.KEYWORD_ONLY, annotation=kind, default=value))

    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collect.__annotations__ = {each.name: each.annotation for each in parameters}
    collect.__doc__ = _plain(function.__doc__ or "")
    return collect


def _plain(docstring: str) -> str:
    """Return what a docstring says to a reader of the command line."""
    text = re.split(r"\n *(?:Raises|Returns|Example):\n", docstring)[0]
    text = re.sub(r"`+|(?<=`)\"|\"(?=`)", "", text)
    return re.sub(r"\bNone for\b", "default:", text)


def _check(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Check what the annotations ask for beyond a type, such as a lowest number."""
    hints = get_type_hints(function, include_extras=True)
    for name, value in values.items():
        is_optional = inspect.signature(function).parameters[name].default is None
        if isinstance(value, DataConfig) and not value.name and is_optional:
            if changed := ", ".join(value.model_dump(exclude_defaults=True)):
                raise ConfigError(f"expected --data NAME with options of the data ({changed})")
            values[name] = None
        elif not isinstance(value, BaseModel):
            try:
                TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                option = f"--{name.replace('_', '-')}"
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ConfigError(f"{option}: {message}, given {value}") from error
    return values


def _one_line(box: str, program: str) -> str:
    """Return in one line what is between the title of tyro's error box and its next rule."""
    lines = [line.strip("│|─ ").removesuffix(" (required)") for line in box.splitlines()]
    rules = [number for number, line in enumerate(lines) if number > 1 and not line.strip("-")]
    start = 2 if not lines[1].strip("-") else 1
    text = _PYDANTIC.sub(_of_option, " ".join(lines[start : min(rules, default=len(lines))]))
    text = _NUMBER.sub(r"expected a number after \1, given \2", text).replace("', '", " ")
    text = text.replace("a number after --data.w", "two numbers, zscore or own after --data.w")
    # Of the options that tyro thinks were meant, only the names.
    flags = re.findall(r"--[a-z][\w.-]*", box.partition("Perhaps you meant:")[2])
    hint = f"; did you mean {' or '.join([*dict.fromkeys(flags)][:3])}?" if flags else ""
    text = re.sub(r"--[a-z][\w.]*", lambda match: match[0].replace("_", "-"), text.rstrip("."))
    return f"{text}{hint}; all options: {program} --help"


def _of_option(match: re.Match[str]) -> str:
    """Return what pydantic says of a setting as what is wrong with an option."""
    section, name, message, value = match.groups("")
    given = "" if value.startswith("{") else f", given {value}"
    return f"--{section}{name and '.'}{name.strip()}: {message}{given}"
