"""A multi-objective search over settings: a good validation score from a small network."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from medduet.data.cache import Progress
from medduet.errors import ConfigError, Interrupted, ModelError, TrainingError
from medduet.experiments.config import Choices, SearchConfig, change, read_settings, require_one
from medduet.experiments.run import train
from medduet.reports.grid_figures import pareto
from medduet.reports.style import save
from medduet.runs.folder import RunFolder, numbered_folder
from medduet.training.reporter import Reporter
from medduet.utils.files import write_json, write_text
from medduet.utils.locks import exclusive, holder, result_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

_ORIGIN = "the space of the search"


@dataclass(frozen=True)
class SearchRecord:
    """A search, as far as it has come: its folder, its settings, and one mapping per trial.

    That has ``number``, ``state``, ``score`` (validation), ``parameters``, ``gmacs``, ``seconds``,
    ``values`` of the settings, ``error``; on the Pareto front ``front`` (1: cheapest), ``recipe``.
    `front` are those that no other beats in both score and cost, the cheapest first.
    """

    path: Path
    config: SearchConfig
    trials: list[dict[str, Any]]
    front: list[dict[str, Any]]


def search(
    config: SearchConfig | None = None,
    *,
    resume: str | Path | None = None,
    reporter: Reporter | None = None,
    progress: Progress = None,
    stop: threading.Event | None = None,
) -> SearchRecord:
    """Search with NSGA-II (doi:10.1109/4235.996017) for settings that score high and cost little.

    Each trial is a run in its own folder. The score is the one by which epochs are selected, on
    the validation split, of the best epoch; the cost is the number of parameters or operations.
    The folder gets ``trials.json``, the figure ``pareto.png``, and for each trial of the front a
    recipe for ``medduet train``.

    Args:
        config: of a new search.
        resume: instead, the folder of a search to continue, and in it the trial that was running.
        reporter: gets the progress of each trial, and a line when it ends.
        progress: draws the progress of downloads and conversions.
        stop: set it to stop after the current step; the search can be resumed.

    Raises:
        ConfigError: settings that don't fit, a search that is running, or no optuna.
        Interrupted: `stop` was set.
        MissingFileError: no search in the folder to resume.
        MedDuetError: the data can't be read, or the first trials all fail.
    """
    require_one(config, resume, "search")
    if config is not None:
        path = _create_folder(config)
    else:
        path = Path(str(resume))
        config = read_settings(SearchConfig, path, "search")
    with exclusive(result_folder(path) / "lock") as alone:
        if not alone:
            raise ConfigError(
                f"{holder(path / 'lock')} works on the search in {path}: wait for it, or stop it"
            )
        running = _Search(path, config, _open_study(path), reporter or Reporter())
        try:
            while len(running.ended()) < config.trials:
                running.run_trial(progress, stop or threading.Event())
        finally:
            record = running.write()
    if all(trial["state"] == "failed" for trial in record.trials):
        raise TrainingError(f"all trials failed: {record.trials[-1]['error']}")
    return record


def _create_folder(config: SearchConfig) -> Path:
    if not config.space:
        raise ConfigError("the search has no space: see the recipe of 'medduet search adares'")
    if not config.run.data.name:
        raise ConfigError("no data given: add --data NAME, or --data FILE.npz")
    path = config.out or numbered_folder(Path("searches") / Path(config.run.data.name).stem)
    if (path / "search.json").exists():
        raise ConfigError(
            f"{path} holds a search already: continue it by 'medduet search --resume {path}', or "
            "give another --out"
        )
    write_json(path / "search.json", config.model_dump(mode="json"))
    return path


def _open_study(path: Path) -> Study:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
    except ImportError as error:
        raise ConfigError("optuna is missing: pip install 'medduet[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(path / "study.jsonl")
    lock = JournalFileOpenLock(journal)  # the default one is a link
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(journal, lock)),
        study_name="medduet",
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )


@dataclass(frozen=True)
class _Search:
    path: Path
    config: SearchConfig
    study: Study
    reporter: Reporter

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that have finished or failed, in their order."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state.is_finished()]

    def run_trial(self, progress: Progress, stop: threading.Event) -> None:
        """Run the next trial, or continue the one that was interrupted."""
        from optuna.trial import TrialState

        trial, config = self._sample(), self.config
        out = self.path / "trials" / f"{trial.number:04d}"
        begun = (out / "config.json").is_file()
        state, result = TrialState.FAIL, None
        try:
            train(
                None if begun else change(config.run, self._suggest(trial), out, _ORIGIN),
                resume=out if begun else None,
                reporter=self.reporter,
                progress=progress,
                stop=stop,
            )
            facts = _facts(RunFolder(out))
            state, result = TrialState.COMPLETE, [facts["score"], facts[config.cost]]
        except Interrupted as error:
            raise Interrupted(
                f"stopped in trial {trial.number + 1} of {config.trials}; continue with: "
                f"medduet search --resume {self.path}"
            ) from error
        except (ModelError, TrainingError) as error:
            facts = {"error": str(error)}
        for name, value in facts.items():
            trial.set_user_attr(name, value)
        self.study.tell(trial.number, result, state=state)
        self.reporter.message(_line(_row(self.ended()[-1]), config))

    def _sample(self) -> Trial:
        import optuna

        # Seeded by the trial, so that a resumed search gives the same as one that did not stop.
        entropy = [self.config.search_seed, len(self.ended())]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        size = self.config.population
        self.study.sampler = optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
        for trial in self.study.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                return optuna.Trial(self.study, trial._trial_id)
        return self.study.ask()

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        return {
            name: trial.suggest_categorical(name, each.choices)
            if isinstance(each, Choices)
            else trial.suggest_float(name, each.low, each.high, log=each.log)
            for name, each in self.config.space.items()
        }

    def write(self) -> SearchRecord:
        """Write all trials, the figure, and the recipes of the front."""
        path, config = self.path, self.config
        trials = [_row(trial) for trial in self.ended()]
        # Of trials with equal values the first is taken.
        best = {tuple(trial.values): trial.number for trial in reversed(self.study.best_trials)}
        front = [trials[best[values]] for values in sorted(best, key=lambda values: values[1])]
        shutil.rmtree(path / "recipes", ignore_errors=True)
        for place, trial in enumerate(front, start=1):
            recipe = path / "recipes" / f"front-{place}.yaml"
            trial |= {"front": place, "recipe": str(recipe)}
            run = change(config.run, trial["values"], path, _ORIGIN).model_dump(
                mode="json", exclude={"out"}, exclude_defaults=True
            )
            write_text(recipe, f"# {_line(trial, config)}\n{yaml.safe_dump(run, sort_keys=False)}")
        write_json(path / "trials.json", trials)
        if best:
            save(pareto(trials, config.cost, config.run.data.name), path / "pareto.png")
        return SearchRecord(path, config, trials, front)


def _facts(run: RunFolder) -> dict[str, Any]:
    """Return the best validation score of a run, its cost and its seconds."""
    scores = [row["val"]["score"] for row in run.epochs if row["val"]["score"] is not None]
    if not scores:
        raise TrainingError("the validation score is undefined")
    cost = {name: run.environment["network"][name] for name in ("parameters", "gmacs")}
    seconds = round(sum(row["seconds"] for row in run.epochs), 1)
    return {"score": max(scores), **cost, "seconds": seconds}


def _row(trial: FrozenTrial) -> dict[str, Any]:
    state = "finished" if trial.values else "failed"
    values = dict(trial.params)
    return {"number": trial.number + 1, "state": state, "values": values, **trial.user_attrs}


def shown_values(trial: Mapping[str, Any]) -> str:
    """Return the settings of a trial in words, such as ``width 8, learning_rate 0.00123``."""
    return ", ".join(
        f"{name.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in trial["values"].items()
    )


def _line(trial: Mapping[str, Any], config: SearchConfig) -> str:
    number, state, values = trial["number"], trial["state"], shown_values(trial)
    if state == "failed":
        return f"trial {number} failed: {trial['error']} ({values})"
    return (
        f"trial {number} of {config.trials} {state}: score {trial['score']:.4f}, "
        f"{trial['parameters'] / 1e6:.2f} M parameters, {trial['gmacs']:.3f} GMAC, "
        f"{trial['seconds']:.0f} s ({values})"
    )
