"""The commands: for each the library function that does it and what shows its result."""

import inspect
import os
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

from medduet.cli.parse import parse, parser_of, signature_of
from medduet.config import load_recipe, recipe_names
from medduet.errors import ConfigError
from medduet.experiments.config import load_grid

COMMANDS = {
    "demo": "experiments.run:train",
    "pretrain": "experiments.run:train",
    "train": "experiments.run:train",
    "evaluate": "evaluation.evaluate:evaluate",
    "stress": "evaluation.stress:stress",
    "predict": "inference.folder:predict_files",
    "calibrate": "evaluation.evaluate:calibrate_bundle",
    "ensemble": "evaluation.ensemble:ensemble",
    "export": "inference.export:export_bundle",
    "push": "runs.bundle:push",
    "serve": "serve.server:serve",
    "benchmark": "experiments.grid:benchmark",
    "report": "reports.report:write_report",
    "compare": "reports.compare:compare",
    "preview": "reports.preview:preview",
    "audit": "reports.audit_page:audit",
    "attach-masks": "data.attach:attach_masks",
    "zarr": "data.sources:zarr",
    "datasets": "cli.lists:datasets",
    "models": "cli.lists:models",
    "doctor": "cli.doctor:examine",
}
RECIPES = {"train": "", "benchmark": "grid"}
"""Commands whose first word is a recipe, and of which kind, see `recipe_names`."""
_NAMED = ("demo", "pretrain")
"""Commands that are trainings by the recipe of their name."""
HELP = f"""\
MedDuet trains networks that classify and segment medical images jointly.

usage: medduet COMMAND ...

  demo                    train on synthetic phantoms for two minutes
  pretrain DATA ...       learn from images without labels; then train with --model.weights
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
  report DIR ...          write a page, tables and figures on finished runs
  compare RUN_A RUN_B     compare two runs on the same images, with paired tests
  preview DATA ...        draw images with their classes and masks
  audit DATA ...          check a data set for leaks, label errors and odd images
  attach-masks TARGET ... add the masks of the data set that another one was made from
  zarr DATA ...           write a zarr store, for data sets larger than one disk
  datasets                list the data sets available by name
  models                  list the networks available by name
  doctor                  check versions, devices, disk and extras

RECIPE is {", ".join(recipe_names())}, GRID is {", ".join(recipe_names("grid"))},
or the path of a .yaml file.
Options of a command: medduet COMMAND --help, such as medduet train auto --help
Completion for bash, fish and zsh: medduet --tyro-print-completion SHELL

  medduet train paper --data bloodmnist
  medduet train auto --data FOLDER --time-budget 1h --out RUN
"""


def run(name: str, words: list[str]) -> int:
    """Run the command called `name`; return the exit code."""
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # of other libraries: a user can do nothing about them
        # What was typed is checked before torch is imported, which takes seconds.
        if name in RECIPES or name in _NAMED:
            arguments = _with_recipe(name, words)
        else:
            arguments = parse(signature_of(COMMANDS[name]), words, f"medduet {name}")
        module, _, attribute = COMMANDS[name].partition(":")
        function = getattr(import_module(f"medduet.{module}"), attribute)
        result = function(**arguments, **_surroundings(function, stack))
        stack.close()  # the screen is free for the result
        from medduet.cli.display.results import show

        return show(name, result, arguments) if is_first() else 0


def complete(words: list[str]) -> None:
    """Print what lets a shell complete all commands and their options."""
    app = tyro.extras.SubcommandApp()
    for name, function in COMMANDS.items():
        app.command(name=name)(parser_of(signature_of(function)))
    app.cli(prog="medduet", args=["--tyro-print-completion", *words])


def _with_recipe(name: str, words: list[str]) -> dict[str, Any]:
    """Return the arguments of a command that takes a recipe, or continues in a folder."""
    kind, function, program = RECIPES.get(name, ""), signature_of(COMMANDS[name]), f"medduet {name}"
    if "--resume" in words:
        if words[0] != "--resume" or len(words) < 2:
            raise ConfigError(f"expected one folder: {program} --resume {(kind or 'run').upper()}")
        program += f" --resume {words[1]}"
        try:
            arguments = parse(function, words[2:], program, omit=("config", "resume"))
        except ConfigError as error:
            raise ConfigError(f"{error}; what is resumed keeps its settings") from error
        return {"resume": Path(words[1]), **arguments}
    if name in _NAMED:
        recipe = name
        if words and not words[0].startswith("-"):
            words = ["--data", *words]
    elif words and not words[0].startswith("-"):
        recipe, words = words[0], words[1:]
        program += f" {recipe}"
        if words and not words[0].startswith("-"):
            option = f"--data{'sets' * bool(kind)} {words[0]}"
            raise ConfigError(f"expected options, given '{words[0]}': {program} {option}")
    else:
        names = ", ".join(recipe_names(kind))
        raise ConfigError(f"expected a recipe after '{name}': {names}, or a .yaml file")
    if not kind:
        return parse(function, words, program, default=load_recipe(recipe), omit=("resume",))
    config = load_grid(recipe)
    if config.out is None:
        config = config.model_copy(update={"out": Path("grids") / Path(recipe).stem})
    arguments = parse(function, words, program, default=config, omit=("resume",))
    axes = {axis: tuple(arguments.pop(axis)) for axis in ("datasets", "networks", "variants")}
    arguments["config"] = arguments["config"].choose(**axes)
    arguments["config"].check_axes(config)
    return arguments


def _surroundings(function: Callable[..., Any], stack: ExitStack) -> dict[str, Any]:
    """Return the arguments of a function that the command line itself fills: screen and signals."""
    from medduet.cli.display import progress

    reporter = progress.ConsoleReporter(enabled=is_first())
    stack.callback(reporter.close)
    names = inspect.signature(function).parameters
    filled = {
        "progress": progress.draw_progress if is_first() else None,
        "reporter": reporter,
        "watch": progress.GridScreen().watch,
        "stop": _stop_on_signals(stack) if "stop" in names else None,
    }
    return {name: value for name, value in filled.items() if name in names}


def is_first() -> bool:
    """Return whether this is the only process, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def _stop_on_signals(stack: ExitStack) -> threading.Event:
    """Let the first SIGINT or SIGTERM finish the step and save; a second one ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        stack.callback(signal.signal, number, signal.signal(number, ask))
    return stop
