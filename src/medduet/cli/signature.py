"""Signatures of library functions, read from their source: importing it would import torch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILLED = ("progress", "reporter", "stop", "watch")  # by the command line itself


def signature_of(name: str) -> Callable[..., Any]:
    """Return a function with the parameters and docstring of ``module:name``, without its body.

    Of the module only what the annotations and defaults of the parameters name is executed.

    Example:
        >>> import inspect
        >>> list(inspect.signature(signature_of("reports.compare:compare")).parameters)[:2]
        ['run_a', 'run_b']
    """
    module, _, function = name.partition(":")
    spec = find_spec(f"medduet.{module}")
    assert spec is not None
    assert spec.origin is not None
    wanted, kept = {function}, list[ast.stmt]()
    for statement in reversed(ast.parse(Path(spec.origin).read_text("utf-8")).body):
        if isinstance(statement, ast.FunctionDef) and statement.name == function:
            _strip(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            statement.names = [
                each for each in statement.names if (each.asname or each.name) in wanted
            ]
            if not statement.names:
                continue
        elif not isinstance(statement, ast.Assign) or not _names(statement.targets) & wanted:
            continue
        wanted |= _names([statement])
        kept.insert(0, statement)
    space: dict[str, Any] = {"__name__": spec.name, "__package__": spec.parent}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + kept, []), spec.origin, "exec"), space)
    found: Callable[..., Any] = space[function]
    return found


def _strip(function: ast.FunctionDef) -> None:
    """Remove all but the docstring and the parameters that can be typed."""
    given, function.returns, function.body = function.args, None, function.body[:1]
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    left = [(each, default) for each, default in pairs if each.arg not in FILLED]
    given.kwonlyargs = [each for each, _ in left]
    given.kw_defaults = [default for _, default in left]


def _names(nodes: list[Any]) -> set[str]:
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}
