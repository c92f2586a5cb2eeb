"""What there is to choose from, on the screen."""

from typing import Annotated

import tyro
from pydantic import Field

from medduet.cli.screen import write, write_table
from medduet.data.cache import cache_folder
from medduet.data.medmnist import medmnist_sets
from medduet.errors import ModelError

_MOST_COSTS = 40  # networks; each is built to count, which takes up to a second


def datasets() -> None:
    """List the data sets available by name."""
    rows = [("phantom", "", "", "generated", "4", "1 or 3")]
    rows.append(("phantom3d", "", "", "generated", "4", "1"))
    for flag, info in medmnist_sets().items():
        multi = "*" if info.task.startswith("multi-label") else ""
        files = {size: cache_folder() / "medmnist" / file.name for size, file in info.files.items()}
        cached = ", ".join(str(size) for size, file in files.items() if file.is_file()) or "no"
        counts = "/".join(map(str, info.samples)), f"{len(info.class_names)}{multi}"
        rows.append((flag, info.licence, cached, *counts, str(info.in_channels)))
    right = ["train/val/test", "classes", "channels"]
    write_table("data sets for --data", ["name", "licence", "cached"], right, rows)
    write(
        "Sizes: MedMNIST at 28, 64, 128 and 224 pixels (volumes: 28, 64), others resized; phantoms "
        "at any. * multi-label.",
        "Or a folder of images with a sub-folder for each class, a .csv of paths and labels, or an "
        ".npz in the layout of MedMNIST (with {split}_masks, if there are masks) or MedSegBench.",
        f"Cache: {cache_folder()}",
    )


def models(
    patterns: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    size: Annotated[int, Field(ge=1)] = 224,
    channels: Annotated[int, Field(ge=1)] = 3,
    classes: Annotated[int, Field(ge=1)] = 8,
) -> None:
    """List networks with their parameters and cost, papers, and the licence of their weights.

    Args:
        patterns: Names or shell patterns, such as 'timm:*resnet*'; default: those of the paper.
        size: Side of the images for which the cost is counted.
        channels: Channels of the images.
        classes: Number of classes.
    """
    from medduet.models.registry import find_model, model_cost, model_names

    names = model_names(patterns)
    if len(names) > _MOST_COSTS:
        write(*names, f"{len(names)} networks; costs are shown for up to {_MOST_COSTS}")
        return
    rows = []
    for name in names:
        try:
            cost = model_cost(name, channels, classes, channels, size)
        except ModelError:
            if len(names) == 1:
                raise
            rows.append([name, "not at this size"])
        else:
            counts = [f"{count:,}" for count in (cost.parameters, cost.parameters_alone)]
            rows.append([name, *counts, f"{cost.gmacs:.2f}", f"{cost.gmacs_alone:.2f}"])
    title = f"networks for --model, at {channels} x {size} x {size} and {classes} classes"
    right = ["parameters", "without decoder", "GMAC", "without decoder"]
    write_table(title, ["name"], right, rows)
    for name in names:
        spec = find_model(name)
        weights = f" Pretrained weights: {spec.licence}." if spec.licence else ""
        write(f"{name}: {spec.summary}. {spec.paper}.{weights}")
    if not patterns:
        write(
            "More: all of timm, and every decoder and encoder of segmentation-models-pytorch: "
            "medduet models 'timm:*resnet*', medduet models 'smp:unet/*'"
        )
