"""From settings and data to what training works with; what doesn't fit is refused here."""

import torch
from lightning.fabric import Fabric

from medduet.config import RunConfig
from medduet.data.augment import build_augmentation
from medduet.data.imageset import ImageSet
from medduet.data.pixels import for_each_axis
from medduet.data.volumes import flat_levels
from medduet.errors import ConfigError
from medduet.losses.objective import Objective, balanced_weights
from medduet.models.base import DuetNetwork, check_takes
from medduet.models.registry import create_model
from medduet.models.weights import WeightsReport, load_weights
from medduet.runs.folder import RunFolder
from medduet.training.fabric import all_sum
from medduet.types import DenseLayout
from medduet.utils.parsing import misread, read_json


def check_same_images(fabric: Fabric, data: ImageSet, folder: RunFolder | None = None) -> None:
    """Refuse other images, or another split of them, in another process or than a run began with.

    Where caches are not shared, one process could train on what another evaluates.
    """
    differs = fabric.broadcast(data.fingerprint) != data.fingerprint
    if others := int(all_sum(fabric, torch.tensor(int(differs), device=fabric.device))):
        raise ConfigError(
            f"expected the same images and split of {data.name} in all {fabric.world_size} "
            f"processes, but {others} have others than the first: give them one shared cache by "
            "--data.cache, or a split by --data.split FILE.csv"
        )
    if folder is None or not (path := folder.path / "environment.json").is_file():
        return
    with misread(path):
        fingerprint = read_json(path)["data"]["fingerprint"]
    if fingerprint != data.fingerprint:
        raise ConfigError(
            f"{folder.path} began with other images than {data.name} has now: put them back as "
            "they were, or start a new run"
        )


def check_settings(config: RunConfig, data: ImageSet) -> None:
    """Refuse what can't be learnt or selected on before anything is written."""
    objective, train = config.objective, config.train
    select, tasks, names = config.evaluate.select, objective.tasks, data.class_names
    is_balanced = train.sampling == "balanced"
    classes = f"one class, {names[0]}" if names else "no classes (folders, or a column 'label')"
    lacking = {"classify": len(names) < 2, "segment": not data.mask_names, "reconstruct": False}
    possible = " ".join(task for task in tasks if not lacking[task]) or "reconstruct"
    tasks_of = {"auto": tasks[0], "last": tasks[0], "dice": "segment", "mse": "reconstruct"}
    needed = tasks_of.get(select, "classify")
    refusals = {
        f"{data.name} has {classes}, so there is nothing to classify: --tasks {possible}": (
            "classify" in tasks and lacking["classify"]
        ),
        f"--objective.ordinal needs images of one grade each, of several, given {classes}": (
            objective.ordinal and (data.multi_label or len(names) < 2 or "classify" not in tasks)
        ),
        "--train.mask-ratio needs the task reconstruct: --tasks reconstruct": (
            train.mask_ratio > 0 and "reconstruct" not in tasks
        ),
        "--patch is for masks, and the class is learnt from whole images: give --size instead": (
            train.patch is not None and tasks == ("classify",)
        ),
        f"{data.name} has no masks, so there is nothing to segment: --tasks {possible}": (
            "segment" in tasks and lacking["segment"]
        ),
        f"--evaluate.select {select} needs the task {needed}, given {' '.join(tasks)}": (
            needed not in tasks
        ),
        "--preset best selects no epoch on test: --evaluate.protocol honest": (
            train.preset == "best" and config.evaluate.protocol == "paper"
        ),
        f"--train.cosine-epochs {train.cosine_epochs} is below --epochs {train.epochs}, so the "
        "rate would rise again after it: leave it out, or give fewer epochs": (
            0 < (train.cosine_epochs or 0) < (train.epochs or 0)  # None is still open
        ),
        f"expected several classes for --train.sampling balanced, given {classes}": (
            is_balanced and lacking["classify"]
        ),
        "--train.sampling balanced needs images in any order, but shards are read one by one: "
        "give --objective.class-weights balanced instead": (
            is_balanced and data.train.shard_sizes is not None
        ),
        "--train.sampling balanced and --objective.class-weights balanced would count rare "
        "classes twice: give one of them": is_balanced and objective.class_weights == "balanced",
    }
    for message, applies in refusals.items():
        if applies:
            raise ConfigError(message)
    build_augmentation(train.augment, data, config.data.modality)  # or a ConfigError


def dense_layout(config: RunConfig, data: ImageSet) -> DenseLayout:
    """Return which dense channels belong to which task."""
    tasks = config.objective.tasks
    return DenseLayout(
        mask_classes=len(data.mask_names) if "segment" in tasks else 0,
        image_channels=data.in_channels if "reconstruct" in tasks else 0,
    )


def build_network(
    config: RunConfig, data: ImageSet, layout: DenseLayout, fresh: bool
) -> tuple[DuetNetwork, WeightsReport | None]:
    """Return the network, and which weights it took from a file; only a `fresh` one reads any."""
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        network = create_model(
            model.name,
            in_channels=data.in_channels,
            num_classes=len(data.class_names) if "classify" in config.objective.tasks else 0,
            dense_channels=layout.channels,
            dims=data.dims,
            flat_levels=flat_levels(data.info.get("spacing")),
            ordinal=config.objective.ordinal,
            pretrained=model.pretrained and fresh,
            **model.options(),
        )
    if config.train.patch is not None:
        network.patch = for_each_axis(config.train.patch, data.dims, "patch")
    check_takes(network, *network.sides_at_once(data.size))
    report = load_weights(network, model.weights) if fresh and model.weights else None
    if model.freeze_encoder:
        network.freeze_encoder()
    return network, report


def encoder_rate(config: RunConfig) -> float | None:
    """Return the learning rate of the encoder, where it is not that of the rest."""
    was_trained = config.model.pretrained or config.model.weights is not None
    fifth = config.train.learning_rate / 5 if was_trained else None
    return config.train.encoder_learning_rate or fifth


def build_objective(config: RunConfig, data: ImageSet, layout: DenseLayout) -> Objective:
    """Return the losses, with the class weights that `config` asks for."""
    weights = None
    if config.objective.class_weights == "balanced" and data.class_names:
        labels = torch.from_numpy(data.train.labels)
        weights = balanced_weights(labels, len(data.class_names))
    return Objective(config.objective, layout, weights)
