"""What pages hold that no file does: the help of each command, and what the package documents.

A page is Markdown that GitHub shows as it is. What only the site has stands in HTML comments:

- a comment that begins with a fence, such as a toctree, is read as if it were no comment;
- ``<!-- commands -->`` becomes the help of every command;
- ``<!-- names: MODULE -->`` becomes the documentation of the public names of that module (its
  ``__all__``, or what it defines), and
  ``<!-- names: MODULE.NAME ... -->`` of these names alone.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin
from unittest import mock

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

import medduet
from medduet import cli

WIDTH = "84"
RECIPE_OF = {"train": "auto", "benchmark": "tasks"}
"""Commands whose help needs a recipe, and the one that is shown."""
PAGES = {
    "README": "index",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "SECURITY": "security",
}
"""Files above docs/, and the pages that stand for them."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what is below."""
    app.add_role("name", name_role)
    app.connect("source-read", read_page)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", split_names, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("html-page-context", open_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Put what stands in comments into a page."""
    text = re.sub(r"<!--\s*\n(`{3,}\{.*?)\n-->", r"\1", source[0], flags=re.DOTALL)
    text = re.sub(r"<!-- commands -->", lambda _: command_help(), text)
    for file, page in PAGES.items():
        text = re.sub(rf"\]\(((?:\.\./)*)\.\./{file}\.md", rf"](\1{page}.md", text)
    source[0] = re.sub(r"<!-- names: ([^>]*?) -->", lambda found: names(found[1]), text)


def name_aliases(
    app: Sphinx,
    what: str,
    name: str,
    of: Any,
    options: Any,
    signature: str | None,
    gives: str | None,
) -> tuple[str | None, str | None]:
    """Show a type alias by its name also where it is one of several types."""
    shown = [
        text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", _plain(text))
        for text in (signature, gives)
    ]
    return shown[0], shown[1]


def _plain(text: str) -> str:
    """Return a signature without what checks its types: of ``Annotated[X, ...]`` X remains."""
    while found := re.search(r"(?:~?typing\.)?Annotated\[", text):
        depth, comma, end = 1, 0, found.end()
        while depth:
            comma = end if text[end] == "," and depth == 1 and not comma else comma
            depth += (text[end] in "[(") - (text[end] in "])")
            end += 1
        text = text[: found.start()] + text[found.end() : comma] + text[end:]
    return text


def name_role(
    role: str, raw: str, text: str, line: int, inliner: Any, *rest: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Show a name in single backticks as code, with a link if it is public."""
    found = re.match(r"[\w.]+", text)
    name = found[0] if found else ""
    if name in medduet.__all__:
        text = f"~medduet.{name}"
    elif not name.startswith("medduet."):
        return [nodes.literal(raw, text)], []
    return PyXRefRole()("py:obj", raw, text, line, inliner)


def command_names() -> list[str]:
    """Return the commands, in the order in which ``medduet --help`` lists them."""
    listed = re.findall(r"^  ([a-z][a-z-]+)[ \n]", run("--help").partition("RECIPE is")[0], re.M)
    return list(dict.fromkeys(listed))


def command_help() -> str:
    """Return the help of all commands as Markdown."""
    parts = [fenced(run("--help"))]
    for name in command_names():
        words = [name, RECIPE_OF[name]] if name in RECIPE_OF else [name]
        parts += [f"## medduet {name}", fenced(run(*words, "--help"))]
    return "\n\n".join(parts)


def fenced(text: str) -> str:
    """Return text as a block of Markdown; sentences that were not broken into lines are."""
    width, lines = int(WIDTH), list[str]()
    for line in text.strip().splitlines():
        whole = line.startswith(" ") or len(line) <= width
        lines += [line.rstrip()] if whole else textwrap.wrap(line, width)
    return "\n".join(["```text", *lines, "```"])


def run(*words: str) -> str:
    """Return what a command prints, as wide on every machine and without colours."""
    plain = {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    output = io.StringIO()
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(output):
        os.environ.pop("FORCE_COLOR", None)
        try:
            code: Any = cli.main(words)
        except SystemExit as stop:
            code = stop.code
    if code:
        raise ExtensionError(f"medduet {' '.join(words)} failed with {code}")
    return output.getvalue()


def names(wanted: str) -> str:
    """Return directives for the public names of a module, or for the names that are given."""
    words = wanted.split()
    if len(words) > 1 or importlib.util.find_spec(words[0]) is None:
        return "\n\n".join(described(word) for word in words)
    module = importlib.import_module(words[0])
    defined = (
        own
        for own, value in vars(module).items()
        if not own.startswith("_") and getattr(value, "__module__", None) == words[0]
    )
    listed = sorted(getattr(module, "__all__", defined), key=str.lower)
    known = [name for name in listed if module is not medduet and name in medduet.__all__]
    parts = [described(f"{words[0]}.{name}") for name in listed if name not in known]
    if known:
        links = ", ".join(f":py:obj:`~medduet.{name}`" for name in known)
        parts.insert(0, rst(f"Also here, and described in :doc:`medduet <python>`: {links}."))
    return "\n\n".join(parts)


def described(name: str) -> str:
    """Return the directive that documents one name."""
    module_name, _, own = name.rpartition(".")
    value = getattr(importlib.import_module(module_name), own)
    if inspect.isclass(value) and issubclass(value, BaseModel):
        return rst(settings(name, value))
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, Exception) else "class"
        ours = any(base.__module__.startswith(("medduet", "torch")) for base in value.__bases__)
        return rst(f".. auto{kind}:: {name}\n   :members:" + "\n   :show-inheritance:" * ours)
    if inspect.isroutine(value):
        return rst(f".. autofunction:: {name}")
    home = home_of(module_name, own)
    documented = ModuleAnalyzer.for_module(home).find_attr_docs().get(("", own), [])
    if not documented:
        raise ExtensionError(f"{home}.{own} has no docstring")
    text = "".join(f"   {line}\n" for line in documented)
    return rst(f".. py:data:: {name}\n\n{text}")


def settings(name: str, model: type[BaseModel]) -> str:
    """Return the directive for a class of settings, with the type and default of each."""
    fields = model.model_fields
    lines = [f".. autoclass:: {name}(**settings)", "   :members:"]
    lines += [f"   :exclude-members: {', '.join(fields)}", ""]
    for own, field in fields.items():
        lines += [f"   .. py:attribute:: {own}", f"      :type: {shown(field.annotation)}"]
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            given = repr(value) if not isinstance(value, BaseModel) else f"{type(value).__name__}()"
            lines.append(f"      :value: {given}")
        lines += ["", f"      {' '.join((field.description or '').split())}", ""]
    return "\n".join(lines)


def shown(annotation: Any) -> str:
    """Return a type as one reads it, without what checks it and where it lives."""
    text = stringify_annotation(bare(annotation), "smart").replace("~", "")
    return re.sub(r"\b(typing|pathlib|collections\.abc|medduet\.\w+)\.", "", text)


def bare(annotation: Any) -> Any:
    """Return a type without its annotations, also within tuples and unions."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return bare(arguments[0])
    if origin is tuple:
        return tuple[tuple(map(bare, arguments))]
    if origin is list:
        return list[bare(arguments[0])]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(bare, arguments))]  # noqa: UP007  (of any number)
    return annotation


def home_of(module_name: str, own: str) -> str:
    """Return the module that gives a name to a package."""
    path = Path(str(importlib.import_module(module_name).__file__))
    stub = path.with_suffix(".pyi")
    tree = ast.parse((stub if stub.exists() else path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and own in {alias.name for alias in node.names}:
            home = f"{module_name}.{node.module}" if node.level else str(node.module)
            return home if own in assigned(home) else home_of(home, own)
    return module_name


def assigned(module_name: str) -> Iterator[str]:
    """Yield the names that a module assigns itself."""
    tree = ast.parse(Path(str(importlib.import_module(module_name).__file__)).read_text())
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def rst(text: str) -> str:
    """Return reStructuredText as Markdown."""
    return f"```{{eval-rst}}\n{text}\n```"


def skip_member(
    app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what has no words of ours: fields of tuples, settings of pydantic and torch."""
    documented = str(getattr(value, "__doc__", None) or "")
    foreign = not str(getattr(value, "__module__", "medduet") or "").startswith("medduet")
    if documented.startswith("Alias for field number") or name == "model_config":
        return True
    return True if inspect.isroutine(value) and foreign else None


def split_names(
    app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Give each of several names that are explained together, ``a, b: what``, a line of its own."""
    for at in reversed(range(len(lines))):
        found = re.match(r"(    )((?:\w+, )+\w+): (.*)", lines[at])
        if found:
            end = at + 1
            while end < len(lines) and lines[end].startswith("     "):
                end += 1
            space, together, first = found.groups()
            for own in reversed(together.split(", ")[1:]):
                lines[end:end] = [f"{space}{own}: {first}", *lines[at + 1 : end]]
            lines[at] = f"{space}{together.split(', ')[0]}: {first}"


def open_reports(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let links to pages that are files of their own open them instead of saving them."""
    if "body" in context:
        saved = r'download="" (href="[^"]*\.html")'
        context["body"] = re.sub(saved, r"\1", context["body"])
