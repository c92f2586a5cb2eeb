"""The commands that train."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medduet.cli.parse import (
    parse,
    quiet_libraries,
    recipe_and_words,
    starting,
    stopping_on_signals,
)
from medduet.config import RunConfig, load_recipe
from medduet.experiments.config import SearchConfig, load_search


def demo(words: list[str]) -> int:
    """Train on built-in phantoms."""
    return _run(parse(RunConfig, words, "medduet demo", default=load_recipe("demo")))


def train(words: list[str]) -> int:
    """Train a network, or go on with a run."""
    given = recipe_and_words("train", words, "")
    if isinstance(given, Path):
        return _run(None, resume=given)
    recipe, rest = given
    return _run(parse(RunConfig, rest, f"medduet train {recipe}", default=load_recipe(recipe)))


def _run(config: RunConfig | None, resume: Path | None = None) -> int:
    with quiet_libraries():
        with starting():
            from medduet.cli.display.results import show_run
            from medduet.experiments.run import train

        record = _with_screen(train, config, resume)
        if int(os.environ.get("RANK", "0")) == 0:
            show_run(record)
    return 0


def search(words: list[str]) -> int:
    """Search settings, or go on with a search."""
    given = recipe_and_words("search", words, "search")
    config, resume = None, None
    if isinstance(given, Path):
        resume = given
    else:
        recipe, rest = given
        program = f"medduet search {recipe}"
        config = parse(SearchConfig, rest, program, default=load_search(recipe))
    with quiet_libraries():
        from medduet.cli.display.results import show_search
        from medduet.experiments.search import search

        show_search(_with_screen(search, config, resume))
    return 0


def _with_screen(work: Callable[..., Any], config: Any, resume: Path | None) -> Any:
    """Let `work` draw on the screen and be stopped by signals."""
    stop = threading.Event()
    with stopping_on_signals(stop):
        from medduet.cli.display.progress import ConsoleReporter, draw_progress

        lead = int(os.environ.get("RANK", "0")) == 0
        with ConsoleReporter(enabled=lead) as reporter:
            return work(
                config,
                resume=resume,
                reporter=reporter,
                progress=draw_progress if lead else None,
                stop=stop,
            )
