"""The command line: reads what was typed, calls one function, prints."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

import medduet
from medduet.config import RunConfig, SearchConfig, load_recipe, load_search, recipe_names
from medduet.errors import ConfigError, Interrupted, MedDuetError, closest

USER_ERROR = 2
INTERRUPTED = 130

_HELP = f"""\
MedDuet trains networks that say what a medical image shows and where.

usage: medduet COMMAND ...

  demo                    train on built-in phantoms in two minutes, and show what comes out
  train RECIPE ...        train, judge and save a network
  train --resume RUN      go on with a run that was stopped
  evaluate PATH ...       judge a finished run or bundle on a split of a data set
  compare RUN_A RUN_B     compare two finished runs on the same images, with paired tests
  search RECIPE ...       search settings for a good score from a small network
  search --resume SEARCH  go on with a search that was stopped
  datasets                the data sets that are known by name
  models                  the networks that are known by name

RECIPE is {", ".join(recipe_names())} (of search: {", ".join(recipe_names("search"))}), or the
path of a .yaml file. Each command explains itself: medduet train honest --help

  medduet train paper --data bloodmnist
  medduet train segment --data set.npz --size 64 --epochs 12 --out RUN
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_HELP)
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"medduet {medduet.__version__}\n")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _dispatch(words[0], words[1:])
    except MedDuetError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as in `medduet datasets | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(command: str, words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "demo": _demo,
        "train": _train,
        "evaluate": _evaluate,
        "compare": _compare,
        "search": _search,
        "datasets": _datasets,
        "models": _models,
    }
    if command not in commands:
        raise ConfigError(f"unknown command '{command}': {closest(command, commands)}")
    return commands[command](words)


def _fail(error: MedDuetError) -> int:
    if int(os.environ.get("RANK", "0")) == 0 or not isinstance(error, Interrupted):
        sys.stderr.write(f"medduet: {' '.join(str(error).split())}\n")
    return INTERRUPTED if isinstance(error, Interrupted) else USER_ERROR


def _parse(kind: Any, words: Sequence[str], program: str, **options: Any) -> Any:
    """Let tyro read `words`; its boxed findings become one line."""
    findings = io.StringIO()
    try:
        with contextlib.redirect_stderr(findings):
            return tyro.cli(kind, args=words, prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(findings.getvalue(), program)) from None


def _one_line(box: str, program: str) -> str:
    """Return the text of tyro's error box in one line."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()]
    text = " ".join(line for line in lines if line)
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
    return f"{text}; {hint}all options: {program} --help"


# Training -----------------------------------------------------------------------------------------


def _demo(words: list[str]) -> int:
    return _run(_parse(RunConfig, words, "medduet demo", default=load_recipe("demo")))


def _train(words: list[str]) -> int:
    given = _recipe_and_words("train", words, "")
    if given is None:
        return 0
    if isinstance(given, Path):
        return _run(None, resume=given)
    recipe, rest = given
    return _run(_parse(RunConfig, rest, f"medduet train {recipe}", default=load_recipe(recipe)))


def _recipe_and_words(
    command: str, words: list[str], kind: str
) -> tuple[str, list[str]] | Path | None:
    """Return the recipe and what follows it, the folder to resume, or None if help was shown."""
    if words and words[0] == "--resume":
        if len(words) != 2:
            raise ConfigError(
                f"expected one folder: medduet {command} --resume {kind.upper() or 'RUN'}"
            )
        return Path(words[1])
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return None
    if not words or words[0].startswith("-"):
        names = recipe_names(kind)
        raise ConfigError(
            f"expected a recipe ({', '.join(names)}, or a .yaml file) after '{command}': "
            f"medduet {command} {'honest' if 'honest' in names else names[0]} --data NAME"
        )
    return words[0], words[1:]


def _run(config: RunConfig | None, resume: Path | None = None) -> int:
    with _quiet_libraries():
        from medduet.console import show_run
        from medduet.run import train

        record = _with_screen(train, config, resume)
        if int(os.environ.get("RANK", "0")) == 0:
            show_run(record)
    return 0


def _search(words: list[str]) -> int:
    given = _recipe_and_words("search", words, "search")
    if given is None:
        return 0
    config, resume = None, None
    if isinstance(given, Path):
        resume = given
    else:
        recipe, rest = given
        program = f"medduet search {recipe}"
        config = _parse(SearchConfig, rest, program, default=load_search(recipe))
    with _quiet_libraries():
        from medduet.console import show_search
        from medduet.pareto_search import search

        show_search(_with_screen(search, config, resume))
    return 0


def _with_screen(work: Callable[..., Any], config: Any, resume: Path | None) -> Any:
    """Let `work` draw on the screen and be stopped by signals."""
    stop = threading.Event()
    with _stopping_on_signals(stop):
        from medduet.console import ConsoleReporter, draw_progress

        lead = int(os.environ.get("RANK", "0")) == 0
        with ConsoleReporter(enabled=lead) as reporter:
            return work(
                config,
                resume=resume,
                reporter=reporter,
                progress=draw_progress if lead else None,
                stop=stop,
            )


@contextlib.contextmanager
def _stopping_on_signals(stop: threading.Event) -> Iterator[None]:
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
def _quiet_libraries() -> Iterator[None]:
    """Keep other libraries' warnings, about which a user can do nothing, off the screen."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Looking ------------------------------------------------------------------------------------------


def _evaluate(words: list[str]) -> int:
    def arguments(
        path: tyro.conf.Positional[Path],
        data: str | None = None,
        split: Literal["train", "val", "test"] = "test",
        size: int | None = None,
        device: str = "auto",
        cache: Path | None = None,
        mirror: str | None = None,
        out: Path | None = None,
    ) -> dict[str, Any]:
        """Judge a finished run or bundle on a split of a data set.

        Args:
            path: The folder of the run, or of the bundle.
            data: A MedMNIST flag, the path of an .npz, or phantom; default: what it was trained on.
            split: Which split to judge.
            size: Side of the images in pixels; default: what the network was trained on.
            device: auto, cpu, cuda, cuda:1 or mps.
            cache: Where downloads and unpacked arrays live.
            mirror: Base URL to download MedMNIST files from instead of Zenodo.
            out: Folder for the results; default: PATH/evaluations/DATA-SPLIT.
        """
        return dict(locals())

    given = _parse(arguments, words, "medduet evaluate")
    with _quiet_libraries():
        from medduet.config import DataConfig
        from medduet.console import draw_progress, show_evaluation
        from medduet.run import evaluate

        source = {name: given.pop(name) for name in ("size", "cache", "mirror")}
        name = given.pop("data")
        data = None if name is None else DataConfig(name=name, **source)
        lead = int(os.environ.get("RANK", "0")) == 0
        metrics = evaluate(**given, data=data, progress=draw_progress if lead else None)
        if lead:
            show_evaluation(metrics, given["split"])
    return 0


def _compare(words: list[str]) -> int:
    def arguments(
        runs: tyro.conf.Positional[tuple[Path, ...]] = (),
        split: Literal["val", "test"] = "test",
        out: Path | None = None,
    ) -> dict[str, Any]:
        """Compare two finished runs on the same images, with paired tests.

        Args:
            runs: The folders of two runs on the same data.
            split: Which split to compare them on.
            out: Write the numbers into this JSON file, too.
        """
        return dict(locals())

    given = _parse(arguments, words, "medduet compare")
    runs, out = given["runs"], given["out"]
    if len(runs) != 2:
        raise ConfigError(f"expected two runs, given {len(runs)}: medduet compare RUN_A RUN_B")
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"--out takes the path of a .json file, given {out}")
    from medduet.console_compare import show_comparison
    from medduet.files import write_json
    from medduet.report.compare import compare

    comparison = compare(runs[0], runs[1], split=given["split"])
    if out is not None:
        try:
            write_json(out, comparison.as_dict())
        except OSError as error:
            raise ConfigError(f"can't write --out {out}: {error.strerror}") from error
    show_comparison(comparison)
    return 0


def _datasets(words: list[str]) -> int:
    def arguments(cache: Path | None = None) -> Path | None:
        """List the data sets that are known by name.

        Args:
            cache: Where downloads and unpacked arrays live.
        """
        return cache

    cache = _parse(arguments, words, "medduet datasets")
    from medduet.console import show_datasets

    show_datasets(cache)
    return 0


def _models(words: list[str]) -> int:
    def arguments(
        patterns: tyro.conf.Positional[tuple[str, ...]] = (),
        size: int = 224,
        channels: int = 3,
        classes: int = 8,
        figure: Path | None = None,
    ) -> dict[str, Any]:
        """List networks with their parameters and cost, papers, and the licence of their weights.

        Args:
            patterns: Names or shell patterns, such as 'timm:*resnet*'; default: those of the paper.
            size: Side of the images for which the cost is counted.
            channels: Channels of the images.
            classes: Number of classes.
            figure: Draw the one network that is named into this PNG file, too.
        """
        return dict(locals())

    given = _parse(arguments, words, "medduet models")
    figure, patterns = given.pop("figure"), given["patterns"]
    if figure is not None and (len(patterns) != 1 or figure.suffix != ".png"):
        raise ConfigError(
            "--figure takes one name and a .png: medduet models vovunet_var --figure FILE.png"
        )
    with _quiet_libraries():
        from medduet.console import show_models
        from medduet.run import draw_model

        show_models(**given)
        if figure is not None:
            size, channels = given["size"], given["channels"]
            draw_model(patterns[0], figure, size=size, channels=channels, classes=given["classes"])
            sys.stdout.write(f"look at: {figure}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
