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
from medduet.cli.signature import signature_of
from medduet.config import recipe_names
from medduet.errors import ConfigError


class Command(NamedTuple):
    """A command."""

    function: str
    """``module:name`` below `medduet`."""
    show: str = ""
    """What prints the result: a text with it and the arguments in braces, or ``module:name`` of a
    function of both that returns the exit code or None."""
    recipes: str | None = None
    """The kind of recipe that the first word names, see `recipe_names`."""
    recipe: str | None = None
    """The recipe, if it is always the same."""


_RESULTS = "cli.display.results"
_EXPORTED = "{result}\nwritten: {result.path}"
_CALIBRATED = "temperature {result.temperature:.3g}, fitted on {result.n} images\nwritten: {out}"
COMMANDS = {
    "demo": Command("experiments.run:train", f"{_RESULTS}:show_run", recipe="demo"),
    "train": Command("experiments.run:train", f"{_RESULTS}:show_run", recipes=""),
    "evaluate": Command("evaluation.evaluate:evaluate", f"{_RESULTS}:show_evaluation"),
    "stress": Command("evaluation.stress:stress", f"{_RESULTS}:show_stress"),
    "predict": Command("inference.folder:predict_files", f"{_RESULTS}:show_predictions"),
    "calibrate": Command("evaluation.calibrate:calibrate_bundle", _CALIBRATED),
    "ensemble": Command("evaluation.ensemble:ensemble", f"{_RESULTS}:show_ensemble"),
    "export": Command("inference.export:export_bundle", _EXPORTED),
    "push": Command("runs.bundle:push", "pushed, next: medduet.load('{result}')"),
    "serve": Command("serve.server:serve"),
    "benchmark": Command("experiments.grid:benchmark", f"{_RESULTS}:show_grid", recipes="grid"),
    "search": Command("experiments.search:search", f"{_RESULTS}:show_search", recipes="search"),
    "report": Command("reports.report:write_report", "report: {result}"),
    "compare": Command("reports.compare:compare", f"{_RESULTS}:show_comparison"),
    "preview": Command("reports.preview:preview", "report: {result}"),
    "audit": Command("cli.data:audit", f"{_RESULTS}:show_audit"),
    "attach-masks": Command("cli.data:attach_masks", f"{_RESULTS}:show_attached"),
    "zarr": Command("cli.data:zarr", "written: {result}\nnext: medduet train --data {result}"),
    "datasets": Command("cli.display.lists:datasets"),
    "models": Command("cli.display.lists:models"),
    "doctor": Command("cli.doctor:examine", f"{_RESULTS}:show_checks"),
}
_LOADERS = {
    "": "config:load_recipe",
    "search": "experiments.config:load_search",
    "grid": "experiments.config:load_grid",
}
HELP = f"""\
MedDuet trains networks that classify and segment medical images jointly.

usage: medduet COMMAND ...

  demo                    train on synthetic phantoms for two minutes
  train RECIPE ...        train, evaluate and save a network; --resume RUN continues a run
  evaluate PATH ...       evaluate a run or bundle on a split of a data set
  stress PATH ...         evaluate it on images corrupted at five severities
  predict PATH IMAGES ... predict classes and masks of image files and folders
  calibrate PATH ...      write a bundle that is calibrated on your own images
  ensemble PATH ...       write one bundle of several networks, or of views of each image
  export PATH ...         write a network as ONNX, which needs no torch
  push PATH OWNER/NAME    upload a network to the Hugging Face hub; hf://OWNER/NAME reads it
  serve PATH ...          serve networks over HTTP, with a web page
  benchmark GRID ...      train a grid of runs; --resume GRID continues it
  search RECIPE ...       search for accurate, small networks; --resume SEARCH continues it
  report DIR ...          write a page, tables and figures on finished runs
  compare RUN_A RUN_B     compare two runs on the same images, with paired tests
  preview DATA ...        draw images with their masks, and how augmentation changes them
  audit DATA ...          check a data set for leaks, label errors and odd images
  attach-masks TARGET ... add the masks of the data set that another one was made from
  zarr DATA ...           write a zarr store, for data sets larger than one disk
  datasets                list the data sets available by name
  models                  list the networks available by name
  doctor                  check versions, devices, disk and extras

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
        # What was typed is checked before torch is imported, which takes seconds.
        if command.recipe or command.recipes is not None:
            arguments = _with_recipe(name, command, words)
        else:
            arguments = parse(signature_of(command.function), words, f"medduet {name}")
        function = _load(command.function)
        result = function(**arguments, **_surroundings(function, stack))
        stack.close()  # the screen is free for the result
        code: int | None = None
        if "{" in command.show and is_first():
            sys.stdout.write(command.show.format(result=result, **arguments) + "\n")
        elif command.show and is_first():
            code = _load(command.show)(result, arguments)
        return code or 0


def complete(words: list[str]) -> None:
    """Print what lets a shell complete all commands and their options."""
    import tyro

    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(name=name)(parser_of(signature_of(command.function)))
    app.cli(prog="medduet", args=["--tyro-print-completion", *words])


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    if sys.stderr.isatty():  # importing torch takes seconds
        sys.stderr.write("starting ...\r")
        sys.stderr.flush()
    found = getattr(import_module(f"medduet.{module}"), function)
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[2K\r")
    return found


def _with_recipe(name: str, command: Command, words: list[str]) -> dict[str, Any]:
    """Return the arguments of a command that takes a recipe, or continues in a folder."""
    kind, recipe = command.recipes or "", command.recipe
    function, program = signature_of(command.function), f"medduet {name}"
    if words[:1] == ["--resume"]:
        if len(words) < 2:
            raise ConfigError(f"expected one folder: {program} --resume {(kind or 'run').upper()}")
        program += f" --resume {words[1]}"
        arguments = parse(function, words[2:], program, omit=("config", "resume"))
        return {"resume": Path(words[1]), **arguments}
    if recipe is None:
        if not words or words[0].startswith("-"):
            names = recipe_names(kind)
            raise ConfigError(
                f"expected a recipe ({', '.join(names)}, or a .yaml file) after '{name}': "
                f"{program} {'honest' if 'honest' in names else names[0]} "
                f"--data{'sets' if kind == 'grid' else ''} NAME"
            )
        recipe, words = words[0], words[1:]
        program += f" {recipe}"
    config = _load(_LOADERS[kind])(recipe)
    if kind != "grid":
        return {"config": parse(type(config), words, program, default=config)}
    out = config.out or Path("grids") / Path(recipe).stem
    config = config.model_copy(update={"out": out})
    arguments = parse(function, words, program, default=config, omit=("resume",))
    axes = {axis: tuple(arguments.pop(axis)) for axis in ("datasets", "networks", "variants")}
    arguments["config"] = arguments["config"].choose(**axes)
    arguments["config"].check_axes(config)
    return dict(arguments)


def _surroundings(function: Callable[..., Any], stack: ExitStack) -> dict[str, Any]:
    """Return the arguments of a function that the command line itself fills: screen and signals."""
    from medduet.cli.display import progress

    names, values = inspect.signature(function).parameters, dict[str, Any]()
    if "stop" in names:
        values["stop"] = stack.enter_context(_stopping_on_signals())
    if "progress" in names:
        values["progress"] = progress.draw_progress if is_first() else None
    if "reporter" in names:
        values["reporter"] = reporter = progress.ConsoleReporter(enabled=is_first())
        stack.callback(reporter.close)
    if "watch" in names:
        screen = progress.GridScreen()
        values["watch"] = screen.watch
        stack.callback(screen.close)
    return values


def is_first() -> bool:
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
