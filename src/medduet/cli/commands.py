"""The commands: for each the library function that does it and what shows its result."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from medduet.cli.parse import parse, parser_of
from medduet.config import recipe_names
from medduet.errors import ConfigError


class Command(NamedTuple):
    """A command.

    Attributes:
        words: what is typed after its name, for the list of commands.
        summary: what it does, likewise.
        function: that does it, as ``module:name`` below `medduet`.
        show: what prints its result, likewise in `medduet.cli.display`: takes the result and the
            arguments, and returns the exit code or None.
        recipes: the kind of recipe that the first word names, see `recipe_names`.
        recipe: the recipe, if it is always the same.
    """

    words: str
    summary: str
    function: str
    show: str | None = None
    recipes: str | None = None
    recipe: str | None = None


COMMANDS = {
    "demo": Command(
        "",
        "train on synthetic phantoms for two minutes",
        "experiments.run:train",
        "results:show_run",
        recipe="demo",
    ),
    "train": Command(
        "RECIPE ...",
        "train, evaluate and save a network; --resume RUN continues a run",
        "experiments.run:train",
        "results:show_run",
        recipes="",
    ),
    "evaluate": Command(
        "PATH ...",
        "evaluate a run or bundle on a split of a data set",
        "evaluation.evaluate:evaluate",
        "results:show_evaluation",
    ),
    "stress": Command(
        "PATH ...",
        "evaluate it on images corrupted at five severities",
        "evaluation.stress:stress",
        "results:show_stress",
    ),
    "predict": Command(
        "PATH IMAGES ...",
        "predict classes and masks of image files and folders",
        "inference.folder:predict_files",
        "written:show_predictions",
    ),
    "calibrate": Command(
        "PATH ...",
        "write a bundle that is calibrated on your own images",
        "evaluation.calibrate:calibrate_bundle",
        "written:show_calibration",
    ),
    "ensemble": Command(
        "PATH ...",
        "write one bundle of several networks, or of views of each image",
        "evaluation.ensemble:ensemble",
        "results:show_ensemble",
    ),
    "export": Command(
        "PATH ...",
        "write a network as ONNX, which needs no torch",
        "inference.export:export_bundle",
        "written:show_export",
    ),
    "push": Command(
        "PATH OWNER/NAME",
        "upload a network to the Hugging Face hub; hf://OWNER/NAME reads it",
        "runs.push:push",
        "written:show_pushed",
    ),
    "serve": Command("PATH ...", "serve networks over HTTP, with a web page", "serve.server:serve"),
    "benchmark": Command(
        "GRID ...",
        "train a grid of runs; --resume GRID continues it",
        "experiments.grid:benchmark",
        "grid:show_grid",
        recipes="grid",
    ),
    "report": Command(
        "DIR ...",
        "write a page, tables and figures on finished runs",
        "reports.page:write_report",
        "written:show_page",
    ),
    "compare": Command(
        "RUN_A RUN_B",
        "compare two runs on the same images, with paired tests",
        "reports.compare:compare",
        "results:show_comparison",
    ),
    "search": Command(
        "RECIPE ...",
        "search for accurate, small networks; --resume SEARCH continues it",
        "experiments.search:search",
        "results:show_search",
        recipes="search",
    ),
    "preview": Command(
        "DATA ...",
        "draw images with their masks, and how augmentation changes them",
        "reports.preview:preview",
        "written:show_page",
    ),
    "audit": Command(
        "DATA ...",
        "check a data set for leaks, label errors and odd images",
        "cli.data:audit",
        "data:show_audit",
    ),
    "attach-masks": Command(
        "TARGET ...",
        "add the masks of the data set from which another one was made",
        "cli.data:attach_masks",
        "data:show_attached",
    ),
    "zarr": Command(
        "DATA ...",
        "write a data set as a zarr store, for sets larger than one disk",
        "cli.data:zarr",
        "data:show_zarr",
    ),
    "datasets": Command("", "list the data sets available by name", "cli.display.lists:datasets"),
    "models": Command("", "list the networks available by name", "cli.display.lists:models"),
    "doctor": Command(
        "", "check versions, devices, disk and extras", "cli.doctor:examine", "lists:show_checks"
    ),
}


def help_text() -> str:
    """Return what ``medduet --help`` prints."""
    usage = {f"{name} {command.words}": command.summary for name, command in COMMANDS.items()}
    lines = "\n".join(f"  {words:<23} {summary}" for words, summary in usage.items())
    return f"""\
MedDuet trains networks that classify and segment medical images jointly.

usage: medduet COMMAND ...

{lines}

RECIPE is {", ".join(recipe_names())} (of search: {", ".join(recipe_names("search"))}), GRID is
{", ".join(recipe_names("grid"))}, or the path of a .yaml file.
Options of a command: medduet COMMAND --help, such as medduet train honest --help
Completion for bash, fish and zsh: medduet --tyro-print-completion SHELL

  medduet train paper --data bloodmnist
  medduet train segment --data set.npz --size 64 --epochs 12 --out RUN
"""


def run(name: str, words: list[str]) -> int:
    """Run the command called `name`; return the exit code."""
    command = COMMANDS[name]
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # of other libraries: a user can do nothing about them
        if command.recipe or command.recipes is not None:
            arguments = _with_recipe(name, command, words)
        else:
            with _starting():
                function = _load(command.function)
            arguments = parse(function, words, f"medduet {name}")
        with _starting():
            function = _load(command.function)
            surroundings = _surroundings(function, stack)
        result = function(**arguments, **surroundings)
        stack.close()  # the screen is free for the result
        if command.show is None or not _is_first():
            return 0
        code: int | None = _load(f"cli.display.{command.show}")(result, arguments)
        return code or 0


def complete(words: list[str]) -> None:
    """Print what lets a shell complete all commands and their options."""
    import tyro

    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(parser_of(_load(command.function)))
    app.cli(prog="medduet", args=["--tyro-print-completion", *words])


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(f"medduet.{module}"), function)


def _with_recipe(name: str, command: Command, words: list[str]) -> dict[str, Any]:
    """Return the arguments of a command that takes a recipe, or continues in a folder."""
    kind, recipe = command.recipes or "", command.recipe
    load: Callable[[str], Any] = _load(
        {
            "": "config:load_recipe",
            "search": "experiments.config:load_search",
            "grid": "experiments.config:load_grid",
        }[kind]
    )
    if words[:1] == ["--resume"]:
        if len(words) < 2 or (len(words) > 2 and kind != "grid"):
            raise ConfigError(
                f"expected one folder: medduet {name} --resume {(kind or 'run').upper()}"
            )
        program, resume = f"medduet {name} --resume {words[1]}", {"resume": Path(words[1])}
        if kind != "grid":
            return resume
        arguments: dict[str, Any] = parse(
            _load(command.function), words[2:], program, omit=("config",)
        )
        return arguments | resume
    if recipe is None:
        if not words or words[0].startswith("-"):
            names = recipe_names(kind)
            raise ConfigError(
                f"expected a recipe ({', '.join(names)}, or a .yaml file) after '{name}': "
                f"medduet {name} {'honest' if 'honest' in names else names[0]} "
                f"--data{'sets' if kind == 'grid' else ''} NAME"
            )
        recipe, words = words[0], words[1:]
    program = f"medduet {name}" + (f" {recipe}" if command.recipe is None else "")
    config = load(recipe)
    if kind == "grid":
        out = config.out or Path("grids") / Path(recipe).stem
        config = config.model_copy(update={"out": out})
        benchmark = _load(command.function)
        arguments = parse(benchmark, words, program, default=config, omit=("resume",))
        arguments["config"].check_axes(config, arguments)
        return arguments
    # Settings are checked before torch is imported, which takes seconds.
    return {"config": parse(type(config), words, program, default=config)}


def _surroundings(function: Callable[..., Any], stack: ExitStack) -> dict[str, Any]:
    """Return the arguments of a function that the command line itself fills: screen and signals."""
    names, values = inspect.signature(function).parameters, dict[str, Any]()
    if "stop" in names:
        values["stop"] = stack.enter_context(_stopping_on_signals())
    if "progress" in names:
        from medduet.cli.display.progress import draw_progress

        values["progress"] = draw_progress if _is_first() else None
    if "reporter" in names:
        from medduet.cli.display.progress import ConsoleReporter

        values["reporter"] = stack.enter_context(ConsoleReporter(enabled=_is_first()))
    if "watch" in names:
        from medduet.cli.display.grid import GridScreen

        values["watch"] = stack.enter_context(GridScreen()).watch
    return values


def _is_first() -> bool:
    """Return whether this is the only process, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def _stopping_on_signals() -> Iterator[threading.Event]:
    """Let the first SIGINT or SIGTERM finish the step and save; a second one ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _starting() -> Iterator[None]:
    """Show on a terminal that libraries are being imported, which takes seconds."""
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
