"""What the command line draws on the screen, with rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from medduet.engine.reporter import Reporter

if TYPE_CHECKING:
    from medduet.doctor import Finding
    from medduet.ensembles import EnsembleRecord
    from medduet.pareto_search import SearchRecord
    from medduet.run import RunRecord

MOST_COSTS = 40  # networks; each is built to count, which takes up to a second
REFRESH = 0.5  # seconds between two readings of the losses, each of which waits for a GPU

_SHOWN = {
    "accuracy": ("accuracy", 4),
    "auc": ("AUC", 4),
    "balanced_accuracy": ("balanced accuracy", 4),
    "macro_f1": ("macro F1", 4),
    "dice": ("Dice", 4),
    "dice_lesion": ("Dice, images with a lesion", 4),
    "iou": ("IoU", 4),
    "hd95": ("HD95 (pixels)", 2),
    "mse": ("MSE", 5),
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
}


class ConsoleReporter(Reporter):
    """Draws a progress bar for training and one line per epoch.

    Args:
        enabled: whether to draw at all; only the first of several processes does.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epoch = self._epochs = self._images = 0
        self._started = self._read = 0.0

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._task is not None:
            self.progress.stop()

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Make room for the steps of the epochs that are left."""
        if self._task is None:
            self.progress.start()
            total = (epochs - epoch + 1) * steps
            self._task = self.progress.add_task("training", total=total, note="")
        self._epoch, self._epochs = epoch, epochs
        self._images, self._started = 0, time.perf_counter()

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        """Advance the bar; read the losses twice a second at most."""
        if self._task is None:
            return
        now = time.perf_counter()
        self._images += images
        self.progress.advance(self._task)
        if now - self._read > REFRESH:
            self._read = now
            rate = self._images / max(now - self._started, 1e-9)
            terms = "  ".join(f"{task} {loss:.3f}" for task, loss in losses().items())
            self.progress.update(
                self._task,
                description=f"epoch {self._epoch}/{self._epochs}",
                note=f"{rate:,.0f} images/s  {terms}",
            )

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """Print the line of the epoch."""
        parts = [f"loss {row['train']['loss']:.3f}"]
        for split in ("val", "test"):
            known = row.get(split, {})
            shown = {"accuracy": "acc", "auc": "AUC", "dice": "Dice"}
            numbers = [f"{name} {known[key]:.3f}" for key, name in shown.items() if key in known]
            if not numbers and "mse" in known:
                numbers = [f"MSE {known['mse']:.4f}"]
            if numbers:
                parts.append(f"{split} {'  '.join(numbers)}")
        self.console.print(
            f"epoch {row['epoch']:>3}/{self._epochs}  {'  |  '.join(parts)}  |  "
            f"{row['seconds']:.1f} s, {row['images_per_second']:,.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
        if self._task is not None and row["epoch"] == self._epochs:
            self.progress.update(self._task, description="judging and drawing", note="")

    def message(self, text: str) -> None:
        """Print the line."""
        self.console.print(text, highlight=False, soft_wrap=True)


class _Bar:
    """A bar of what is done, with the interface that pooch asks for."""

    def __init__(self, description: str, total: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(description, total=total or None)
        self._progress.start()

    @property
    def total(self) -> int:
        return int(self._progress.tasks[0].total or 0)

    @total.setter
    def total(self, value: int) -> None:
        self._progress.update(self._task, total=value or None)

    def update(self, amount: int, /) -> None:
        self._progress.advance(self._task, amount)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()


def draw_progress(description: str, total: int) -> _Bar:
    """Draw a bar of what is done: the `ProgressFactory` of the command line."""
    return _Bar(description, total)


def _interval(row: Mapping[str, Any], key: str, digits: int) -> str:
    interval = row.get(f"{key}_interval")
    if not interval or None in interval:
        return ""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def metrics_table(title: str, row: Mapping[str, Any]) -> Table:
    """Return the table of the metrics of one split."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for key, (name, digits) in _SHOWN.items():
        if isinstance(row.get(key), float):
            table.add_row(name, f"{row[key]:.{digits}f}", _interval(row, key, digits))
    calibration = row.get("calibration") or {}
    for key, name in (("ece_before", "ECE, as trained"), ("ece_after", "ECE, calibrated")):
        if calibration.get(key) is not None:
            table.add_row(name, f"{calibration[key]:.3f}", "")
    held = calibration.get("sets", {}).get("0.90", {})
    if held.get("coverage") is not None:
        table.add_row("in the 90% set", f"{held['coverage']:.3f}", _interval(held, "coverage", 3))
        table.add_row("classes in the 90% set", f"{held['size']:.2f}", "")
    return table


def show_run(record: RunRecord) -> None:
    """Print what came out of a run, and where it is."""
    console = Console()
    metrics = record.metrics
    blocks = [metrics]
    if "validation_selected" in metrics:
        blocks.append(metrics["validation_selected"])
    for block in blocks:
        title = f"test split, n = {block['test']['n']}: epoch {block['selected_epoch']}"
        console.print(metrics_table(f"{title}, {block['selection']}", block["test"]))
    missing = blocks[-1].get("calibration_missing")
    if missing and "accuracy" in blocks[-1]["test"]:
        told = (
            f"not calibrated on the validation split: {missing}; --data.fractions 0.6 0.2 0.2 puts "
            "more there, and 'medduet calibrate' takes other images"
        )
        console.print(told, highlight=False, soft_wrap=True)
    console.print(f"run: {record.path}", highlight=False, soft_wrap=True)
    console.print(f"look at: {record.path / 'figures' / 'predictions.png'}", soft_wrap=True)
    console.print(
        f"use it:  medduet predict {record.path} IMAGES --out DIR", highlight=False, soft_wrap=True
    )


def show_search(record: SearchRecord) -> None:
    """Print the Pareto front of a search, and where its recipes are."""
    table = Table(
        title=f"Pareto front of {len(record.trials)} trials",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("front", "validation score", "parameters", "GMAC"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in record.front:
        values = (
            f"{name.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in trial["values"].items()
        )
        table.add_row(
            str(trial["front"]),
            f"{trial['score']:.4f}",
            f"{trial['parameters']:,}",
            f"{trial['gmacs']:.3f}",
            ", ".join(values),
        )
    console = Console()
    console.print(table)
    for text in (
        f"search: {record.path}",
        f"look at: {record.path / 'pareto.png'}",
        f"train one: medduet train {record.path / 'recipes' / 'front-1.yaml'} --out RUN",
    ):
        console.print(text, highlight=False, soft_wrap=True)


def show_evaluation(metrics: Mapping[str, Any], split: str) -> None:
    """Print the metrics of one split of a data set."""
    row = metrics[split]
    Console().print(metrics_table(f"{metrics['data']['name']}, {split}, n = {row['n']}", row))


def show_ensemble(record: EnsembleRecord) -> None:
    """Print how good the members of an ensemble are, and how good it is, and where it is."""
    console = Console()
    for split, rows in record.scores.items():
        shown = [key for key in _SHOWN if all(isinstance(row.get(key), float) for row in rows)]
        table = Table(
            title=f"{record.images}, {split}, n = {rows[-1]['n']}",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("metric")
        numbers = [str(number + 1) for number in range(len(record.members))]
        for name in (*numbers, "mean of these", "ensemble", "95% interval"):
            table.add_column(name, justify="right")
        for key in shown:
            name, digits = _SHOWN[key]
            values = [row[key] for row in rows]
            values.insert(-1, sum(values[:-1]) / (len(values) - 1))
            cells = [f"{value:.{digits}f}" for value in values]
            table.add_row(name, *cells, _interval(rows[-1], key, digits))
        console.print(table)
    for number, name in enumerate(record.members, 1):
        console.print(f"{number}: {name}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"written: {record.path}", highlight=False, soft_wrap=True)


def show_findings(findings: Sequence[Finding]) -> None:
    """Print what was found out about this machine."""
    table = Table(box=SIMPLE_HEAD, show_header=False)
    styles = {"good": "green", "missing": "yellow", "bad": "bold red"}
    for each in findings:
        style = styles[each.state]
        table.add_row(each.name, f"[{style}]{each.state}[/{style}]", escape(each.text))
    Console().print(table)


def show_datasets(cache: Path | None) -> None:
    """Print the table of the data sets that are known by name."""
    from medduet.data import cache_folder, cached_sizes, medmnist_sets

    table = Table(
        title="data sets for --data", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for name in ("name", "train/val/test", "classes", "channels", "licence", "cached"):
        right = name in ("train/val/test", "classes", "channels")
        table.add_column(
            name, justify="right" if right else "left", min_width=6, no_wrap=name == "name"
        )
    table.add_row("phantom", "generated", "4", "1 or 3", "", "")
    for flag, info in medmnist_sets().items():
        multi = "*" if info.task.startswith("multi-label") else ""
        table.add_row(
            flag,
            "/".join(map(str, info.samples)),
            f"{len(info.class_names)}{multi}",
            str(info.in_channels),
            info.licence,
            ", ".join(map(str, cached_sizes(flag, cache))) or "no",
        )
    console = Console()
    console.print(table)
    console.print(
        "Sizes: MedMNIST at 28, 64, 128 and 224 pixels, others resized; phantom at any. "
        "* several classes at once.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        "Or a folder of images with a sub-folder for each class, a .csv of paths and labels, or an "
        ".npz in the layout of MedMNIST (with {split}_masks, if there are masks) or MedSegBench.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Cache: {cache_folder(cache)}", highlight=False, soft_wrap=True)


def show_models(patterns: Sequence[str], size: int, channels: int, classes: int) -> None:
    """Print the table of the networks whose names match, with what they cost."""
    from medduet.errors import ModelError
    from medduet.models import find_model, model_names
    from medduet.models.cost import model_cost

    names = model_names(patterns)
    console = Console()
    if len(names) > MOST_COSTS:
        console.print("\n".join(names), highlight=False)
        console.print(
            f"{len(names)} networks; what they cost is shown for up to {MOST_COSTS}", soft_wrap=True
        )
        return
    table = Table(
        title=f"networks for --model, at {channels} x {size} x {size} and {classes} classes",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("name", no_wrap=True)
    for title in ("parameters", "without decoder", "GMAC", "without decoder"):
        table.add_column(title, justify="right")
    refused: list[ModelError] = []
    for name in names:
        try:
            cost = model_cost(name, channels, classes, channels, size)
        except ModelError as error:
            refused.append(error)
            table.add_row(name, "not at this size")
            continue
        counts = f"{cost.parameters:,}", f"{cost.parameters_alone:,}"
        table.add_row(name, *counts, f"{cost.gmacs:.2f}", f"{cost.gmacs_alone:.2f}")
    if len(refused) == len(names):
        raise refused[0]
    console.print(table)
    for name in names:
        spec = find_model(name)
        weights = f" Pretrained weights: {spec.licence}." if spec.licence else ""
        text = f"{name}: {spec.summary}. {spec.paper}.{weights}"
        console.print(text, highlight=False, soft_wrap=True)
    if not patterns:
        console.print(
            "Any other of timm, and any decoder and encoder of segmentation-models-pytorch: "
            "medduet models 'timm:*resnet*', medduet models 'smp:unet/*'",
            highlight=False,
            soft_wrap=True,
        )
