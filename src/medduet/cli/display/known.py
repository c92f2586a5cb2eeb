"""What is there to choose from, and what this machine has, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from medduet.cli.doctor import Finding

MOST_COSTS = 40  # networks; each is built to count, which takes up to a second


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
    from medduet.data.cache import cache_folder
    from medduet.data.medmnist import cached_sizes, medmnist_sets

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
    from medduet.models.cost import model_cost
    from medduet.models.registry import find_model, model_names

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
