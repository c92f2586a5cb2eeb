"""What a recipe leaves open, decided from the images and the machine, with a reason for each."""

import math
import time
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric

from medduet.config import RunConfig, by_path
from medduet.data.augment import build_augmentation
from medduet.data.imageset import ImageSet
from medduet.data.modality import allowed, known_modality
from medduet.data.patches import patches_and_views
from medduet.data.pixels import for_each_axis
from medduet.errors import ConfigError, ModelError, one_line
from medduet.experiments.config import change
from medduet.models.base import DuetNetwork, activation_bytes
from medduet.models.encoders import weights_at_hand
from medduet.models.inference import prepare_network
from medduet.models.registry import find_model
from medduet.training.setup import build_network, build_objective, check_settings, dense_layout
from medduet.types import KINDS, Augment, DenseLayout, Preset, Task
from medduet.utils.devices import total_memory
from medduet.utils.hub import CONFIG, bundle_folder
from medduet.utils.parsing import read_json

PRETRAINED, PLAIN = "timm:mobilenetv2_100", "vovunet_var"
"""The networks that are chosen where ImageNet's weights can be had, and where they can't."""
_IMAGES: dict[Preset, int] = {"fast": 10_000, "balanced": 40_000, "best": 40_000}
_EPOCHS: dict[Preset, tuple[int, int]] = {"fast": (5, 30), "balanced": (12, 80), "best": (12, 80)}
"""Images that a network sees in all, and the fewest and most epochs."""
_SHARE = 0.85
"""Of a time budget for epochs; the rest is for evaluation, figures and what was not foreseen."""
FOLDS = 5
"""Members of the preset ``best``, each with another fifth of train and val as its val."""
_OPEN = (
    *("model.name", "objective.tasks", "train.epochs", "train.batch_size"),
    *("train.learning_rate", "train.augment", "train.ema"),
)
_STEPS = 4  # that are timed; the first one, which is slower, is not counted
_AVERAGED = 0.05  # the share of all steps
_SIDE = 64  # to which smaller images are enlarged for pretrained encoders
_MEMORY_SHARE, _GRADIENTS, _SHORTEST = 0.5, 2, 32
"""Of all memory for a step; gradients take as much as maps; the shortest side of patches."""
_FEW = 10  # epochs, below which a budget is called short


class Decision(NamedTuple):
    """A setting that was open, by its path, what it became, and why."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        several = isinstance(self.value, tuple | list)
        value = " ".join(map(str, self.value)) if several else self.value
        return one_line(f"{self.setting} {value}: {self.reason}", 300)


def plan(config: RunConfig, data: ImageSet, fabric: Fabric) -> tuple[RunConfig, list[Decision]]:
    """Return the settings with what is open (``None``) filled, and what was decided.

    What is set already stays, and the rest is decided for it. The time of a step is measured on the
    device, where the number of epochs depends on it.
    """
    settings, changes = by_path(config.model_dump()), dict[str, Any]()
    decisions: list[Decision] = []

    def decide(setting: str, value: Any, reason: str) -> Any:
        if settings[setting] is None and value is not None:
            settings[setting] = changes[setting] = value
            decisions.append(Decision(setting, value, reason))
        return settings[setting]

    if settings["model.name"] is None:
        name, options, reason = _network(config, data)
        decide("model.name", name, reason)
        changes |= {f"model.{option}": value for option, value in options.items()}
    pretrained = changes.get("model.pretrained") or config.model.pretrained or config.model.weights
    halves = pretrained and ":" in settings["model.name"]  # of timm or smp
    free = config.data.spacing is None and data.train.shard_sizes is None
    if halves and max(data.size) < _SIDE and free:
        reason = f"a pretrained encoder knows larger images, so {max(data.size)} are enlarged"
        sides = (round(side * _SIDE / max(data.size)) for side in data.size)
        decide("data.size", tuple(dict.fromkeys(sides)), reason)
    if settings["objective.tasks"] is None:
        decide("objective.tasks", *_tasks(data))
    decide("train.augment", *_augment(data, config))
    check_settings(_filled(config, changes), data)
    count, preset = len(data.train), config.train.preset
    size = for_each_axis(changes.get("data.size", data.size), data.dims)
    fitting = _fitting(_filled(config, changes), data, size, fabric.device)
    images, patch, reason = fabric.broadcast(fitting)  # machines may differ in memory
    decide("train.patch", patch, reason)
    batch = decide("train.batch_size", *_batch_size(count, images))
    reached = f"for batches of {batch} with {settings['train.optimizer']}"
    rate = decide("train.learning_rate", 1e-3 if batch <= 32 else 2e-3, reached)
    if pretrained and preset == "fast":
        reason = "that of the rest, as a lower one is too slow for so few epochs"
        decide("train.encoder_learning_rate", rate, reason)
    fewest, most = _EPOCHS[preset]
    epochs = min(max(round(_IMAGES[preset] / count), fewest), most)
    why = f"{epochs * count:,} images seen (preset {preset})"
    if settings["train.epochs"] is None:
        filled = _filled(config, changes | {"train.epochs": epochs, "train.ema": 0})
        larger = (max(changes.get("data.size") or data.size) / max(data.size)) ** data.dims
        seconds = fabric.broadcast(larger * _seconds_per_epoch(filled, data, fabric))
        budget = config.train.budget_seconds * _SHARE / (FOLDS if preset == "best" else 1)
        if (affordable := int(budget / seconds) if budget < float("inf") else epochs) < epochs:
            why = f"as many as {config.train.time_budget} allow, of {epochs} wished"
            why += "; a smaller --size allows more" * (affordable < _FEW)
            epochs = max(1, affordable)
        decide("train.epochs", epochs, f"{why}; about {_duration(seconds)} each")
    steps = settings["train.epochs"] * math.ceil(count / batch)
    decay = round(1 - 1 / max(_AVERAGED * steps, 1), 4)
    decide("train.ema", decay, f"averages about {_AVERAGED:.0%} of {steps:,} steps")
    return _filled(config, changes), decisions


def _network(config: RunConfig, data: ImageSet) -> tuple[str, dict[str, Any], str]:
    """Return the name of a network, further settings of it, and the reason."""
    if config.model.weights is not None:
        path = bundle_folder(config.model.weights)
        saved = next((p for p in (path / "bundle" / CONFIG, path / CONFIG) if p.is_file()), None)
        if saved is None:
            raise ConfigError(f"{path} does not say whose weights these are: add --model NAME")
        arguments = read_json(saved, ModelError).get("network", {})
        name = str(arguments.get("name", ""))
        options = {key: arguments[key] for key in find_model(name).options & arguments.keys()}
        return name, options, f"that of {path}"
    if config.model.width is not None:
        return PLAIN, {}, "the U-Net that takes a width"
    if data.dims == 3:
        return PLAIN, {"width": 16}, "of width 16, from scratch: ImageNet has no volumes"
    if weights_at_hand(PRETRAINED):
        return PRETRAINED, {"pretrained": True}, "small, and starts from ImageNet's weights"
    reason = "of width 16, from scratch: the hub with ImageNet's weights can't be reached"
    return PLAIN, {"width": 16}, reason


def _tasks(data: ImageSet) -> tuple[tuple[Task, ...], str]:
    if not data.mask_names and len(data.class_names) < 2:
        notes = (x for x in data.info.get("notes", ()) if x.startswith(("columns", "folders")))
        columns = next(notes, "")
        raise ConfigError(
            f"{data.name}: expected classes (sub-folders, or a column label) or masks (called "
            f"NAME_mask, or a column mask), given none{columns and '; ' + columns}: --tasks "
            "reconstruct learns from images alone"
        )
    if not data.mask_names:
        return ("classify",), "classes, and no masks"
    if len(data.class_names) < 2:
        return ("segment",), "masks, and no classes"
    return ("classify", "segment"), "classes and masks"


def _batch_size(count: int, fitting: int) -> tuple[int, str]:
    sizes = (4, 100), (8, 400), (16, 2_000), (32, 10_000), (64, 40_000), (128, float("inf"))
    size = next(size for size, most in sizes if count < most)
    why = f"{count:,} training images, so {math.ceil(count / size):,} steps per epoch"
    if fitting < size:
        why = "what fits into half of the memory"
        why += ", or not even that: a smaller --size is needed" * (fitting < 2)
        size = max(2, fitting)
    return size, why


def _fitting(
    config: RunConfig, data: ImageSet, size: tuple[int, ...], device: torch.device
) -> tuple[int, tuple[int, ...] | None, str]:
    """Return how many images half of the memory holds in a step, or patches, and why these.

    The longest side is shrunk, as by nnU-Net's planner, until two fit; the patch is ``None`` where
    whole images do.
    """
    layout = dense_layout(config, data)
    network = _sketch(config, data, layout)
    memory = total_memory(device) * _MEMORY_SHARE
    sides = list(network.sides_at_once(size))
    while True:
        each = _GRADIENTS * activation_bytes(network, *sides)
        images = int(memory / each)
        views = 2 if tuple(sides) != size else 1  # of the whole, beside the patches
        if images >= 2 * views or max(sides) <= _SHORTEST or not layout.mask_classes:
            break
        longest = sides.index(max(sides))
        sides[longest] = max(_SHORTEST, (sides[longest] - 1) // 16 * 16)
    reason = f"two whole {KINDS[data.dims]} take more than half of {memory * 2 / 2**30:.0f} GB"
    return images // views, tuple(sides) if views == 2 else None, reason


def _augment(data: ImageSet, config: RunConfig) -> tuple[Augment, str]:
    modality = known_modality(data.info, config.data.modality)
    may = allowed(modality, [*data.class_names, *data.mask_names], data.in_channels)
    moves = "mirrored, " if may.mirror else "not mirrored, as a class says left or right, "
    moves += "turned" if may.turn else "not turned, as it may have an upper side"
    return "light", f"modality {modality}: {moves}"


def _sketch(config: RunConfig, data: ImageSet, layout: DenseLayout) -> DuetNetwork:
    """Return the network without weights from elsewhere."""
    plain = {"pretrained": False, "weights": None}
    config = config.model_copy(update={"model": config.model.model_copy(update=plain)})
    return build_network(config, data, layout, fresh=True)[0]


def _seconds_per_epoch(config: RunConfig, data: ImageSet, fabric: Fabric) -> float:
    """Return about how long an epoch takes: a few steps are made and thrown away."""
    train, device = config.train, fabric.device
    layout = dense_layout(config, data)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        network = _sketch(config, data, layout)
        precision = str(fabric.strategy.precision.precision)
        prepare_network(network, device, data.size, precision)
        objective = build_objective(config, data, layout).to(device)
        rows = np.arange(min(train.batch_size // fabric.world_size or 1, len(data.train)))
        batch = data.train.batch(rows).apply(lambda tensor: tensor.to(device))
        sides = network.sides_at_once(data.size)
        batch = patches_and_views(batch, sides, "classify" in objective.tasks)
        augment = build_augmentation(train.augment, data, config.data.modality, sides)
        network.train()
        times = []
        for _ in range(_STEPS):
            started = time.perf_counter()
            moved = augment(batch) if augment else batch
            with fabric.autocast():
                terms = objective(network(moved.image), moved, network.normalize(moved.image))
            loss = objective.loss(terms, objective.weights(moved).to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for a GPU
            times.append(time.perf_counter() - started)
    steps = math.ceil(len(data.train) / train.batch_size)
    per_image = median(times[1:]) / train.batch_size
    return median(times[1:]) * steps + per_image * len(data.val) / 3


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def is_open(config: RunConfig) -> bool:
    """Return whether a setting is left to `plan`."""
    settings = by_path(config.model_dump())
    return any(settings[name] is None for name in _OPEN)


def _filled(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    return change(config, changes, config.out, "plan")
