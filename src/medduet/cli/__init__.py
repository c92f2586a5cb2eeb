"""The command line: reads what was typed, calls one function, prints."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from medduet._version import __version__
from medduet.cli import data, deploy, grids, looking, shell, training
from medduet.config import describe, recipe_names
from medduet.errors import ConfigError, Interrupted, MedDuetError, StorageError, closest

USER_ERROR = 2
INTERRUPTED = 130

_HELP = f"""\
MedDuet trains networks that say what a medical image shows and where.

usage: medduet COMMAND ...

  demo                    train on built-in phantoms in two minutes, and show what comes out
  train RECIPE ...        train, judge and save a network
  train --resume RUN      go on with a run that was stopped
  evaluate PATH ...       judge a finished run or bundle on a split of a data set
  stress PATH DATA ...    judge it on images that are corrupted at five severities
  predict PATH IMAGES ... say of image files and folders what they show and where
  calibrate PATH ...      write a bundle whose probabilities fit images of your own
  ensemble PATH ...       make one bundle of several networks, or of views of each image
  export PATH ...         write a network for ONNX Runtime or OpenVINO, which need no torch
  push PATH OWNER/NAME    send a network to the Hugging Face hub; PATH hf://OWNER/NAME reads it
  serve PATH ...          serve networks to browsers and programs
  benchmark GRID ...      train a grid of runs; the same command again goes on with it
  report DIR ...          one page, tables and figures of the runs in these folders
  compare RUN_A RUN_B     compare two finished runs on the same images, with paired tests
  search RECIPE ...       search settings for a good score from a small network
  search --resume SEARCH  go on with a search that was stopped
  show DATA ...           look at images with their masks, and at what augmentation does to them
  audit DATA ...          look whether a data set can be trusted; write a split without leaks
  attach-masks TARGET ... give a set the masks of the set that it was made from
  zarr DATA ...           write a zarr store, for sets larger than one disk; --data URL/SET.zarr
  datasets                the data sets that are known by name
  models                  the networks that are known by name
  doctor                  what this machine has, and what is missing
  completion SHELL        what lets bash, fish or zsh complete commands and options

RECIPE is {", ".join(recipe_names())} (of search: {", ".join(recipe_names("search"))}), GRID is
{", ".join(recipe_names("grid"))}, or the path of a .yaml file. Each command explains itself:
medduet train honest --help

  medduet train paper --data bloodmnist
  medduet train segment --data set.npz --size 64 --epochs 12 --out RUN
"""


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": training.demo,
    "train": training.train,
    "audit": data.audit,
    "evaluate": looking.evaluate,
    "stress": looking.stress,
    "calibrate": deploy.calibrate,
    "export": deploy.export,
    "predict": deploy.predict,
    "ensemble": deploy.ensemble,
    "push": deploy.push,
    "serve": deploy.serve,
    "benchmark": grids.benchmark,
    "report": grids.report,
    "compare": grids.compare,
    "search": training.search,
    "show": looking.show,
    "attach-masks": data.attach_masks,
    "zarr": data.write_zarr,
    "datasets": looking.datasets,
    "models": looking.models,
    "doctor": shell.doctor,
    "completion": shell.completion,
}
_RECIPES = ("train", "search", "benchmark")
"""Commands whose own help needs a recipe, whose values it shows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    help_words = ("-h", "--help", "help")
    if not words or words[0] in help_words or (words[0] in _RECIPES and words[1:2] == ["--help"]):
        sys.stdout.write(_HELP)
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"medduet {__version__}\n")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _dispatch(words[0], words[1:])
    except MedDuetError as error:
        return _fail(error)
    except ValidationError as error:
        return _fail(ConfigError(describe(error)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as in `medduet datasets | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(StorageError(f"{error.filename or 'a disk'} is full: make room"))
        if error.filename is None:
            raise
        return _fail(
            ConfigError(f"can't use {error.filename}: {error.strerror}; give another path")
        )


def _dispatch(command: str, words: list[str]) -> int:
    if command not in COMMANDS:
        raise ConfigError(f"unknown command '{command}': {closest(command, COMMANDS)}")
    return COMMANDS[command](words)


def _fail(error: MedDuetError) -> int:
    if int(os.environ.get("RANK", "0")) == 0 or not isinstance(error, Interrupted):
        sys.stderr.write(f"medduet: {' '.join(str(error).split())}\n")
    return INTERRUPTED if isinstance(error, Interrupted) else USER_ERROR
