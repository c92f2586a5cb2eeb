"""Signatures of library functions, read from their source: importing it would import torch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILLED = ("progress", "reporter", "stop", "watch")  # by the command line itself


def signature_of(name: str) -> Callable[..., Any]:
    """Return a function with the docstring of ``module:name`` and the parameters to be typed.

    Of the module only what their annotations and defaults name is executed.

    Example:
        >>> import inspect
        >>> list(inspect.signature(signature_of("reports.compare:compare")).parameters)[:2]
        ['run_a', 'run_b']
    """
    module, _, function = name.partition(":")
    spec = find_spec(f"medduet.{module}")
    assert spec is not None
    wanted, kept = {function}, list[ast.stmt]()
    for each in reversed(ast.parse(Path(str(spec.origin)).read_text("utf-8")).body):
        if isinstance(each, ast.FunctionDef) and each.name == function:
            given = each.args
            pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
            left = [pair for pair in pairs if pair[0].arg not in FILLED]
            given.kwonlyargs, given.kw_defaults = [one for one, _ in left], [two for _, two in left]
            each.returns, each.body = None, each.body[:1]
        elif isinstance(each, ast.Import | ast.ImportFrom):
            each.names = [alias for alias in each.names if (alias.asname or alias.name) in wanted]
            if not each.names:
                continue
        elif not isinstance(each, ast.Assign) or not _names(*each.targets) & wanted:
            continue
        wanted |= _names(each)
        kept.insert(0, each)
    space: dict[str, Any] = {"__name__": spec.name}
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + kept, []), str(spec.origin), "exec"), space)
    found: Callable[..., Any] = space[function]
    return found


def _names(*nodes: ast.AST) -> set[str]:
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}
