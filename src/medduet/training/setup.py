"""From settings and data to what training works with; what doesn't fit is refused here."""

from __future__ import annotations

import hashlib

import torch
from lightning.fabric import Fabric

from medduet.config import RunConfig
from medduet.data.augment import allowed
from medduet.data.imageset import ImageSet
from medduet.errors import ConfigError
from medduet.losses.balance import Balance
from medduet.losses.objective import Objective, balanced_weights
from medduet.models.base import DuetNetwork, check_takes
from medduet.models.registry import create_model
from medduet.models.weights import WeightsReport, load_weights
from medduet.runs.folder import RunFolder
from medduet.types import DenseLayout
from medduet.utils.devices import find_device
from medduet.utils.parsing import misread, read_json


def check_same_images(fabric: Fabric, data: ImageSet, folder: RunFolder | None = None) -> None:
    """Refuse other images, or another split of them, in another process or than a run began with.

    Each process opens them by itself, and where caches are not shared each makes its own split:
    one could train on what another evaluates. All processes have to call this.

    Raises:
        ConfigError: in every process, if any two differ.
    """
    digest = hashlib.sha256(data.fingerprint.encode()).digest()
    own = torch.tensor([*digest], device=fabric.device)
    gathered = fabric.all_gather(own)
    assert isinstance(gathered, torch.Tensor)
    gathered = gathered.reshape(-1, len(own))
    if different := (gathered != gathered[0]).any(dim=1).nonzero().flatten().tolist():
        raise ConfigError(
            f"expected the same images and split of {data.name} in all {len(gathered)} "
            f"processes, but process {different[0]} has others than process 0: give them one "
            "shared cache by --data.cache, or a split by --data.split FILE.csv"
        )
    path = None if folder is None else folder.path / "environment.json"
    if path is None or not path.is_file():
        return
    with misread(path):
        fingerprint = read_json(path)["data"]["fingerprint"]
    if fingerprint != data.fingerprint:
        raise ConfigError(
            f"{path.parent} began with other images than {data.name} has now: put them back as "
            "they were, or start a new run"
        )


def check_settings(config: RunConfig, data: ImageSet) -> None:
    """Refuse what can't be learnt or selected on before anything is written."""
    _check_tasks(config, data)
    _check_balance(config)
    _check_images(config, data)
    model = config.model
    if model.pretrained and model.weights is not None:
        raise ConfigError("--model.pretrained and --model.weights were both given: leave one out")
    if model.freeze_encoder and config.train.encoder_learning_rate is not None:
        raise ConfigError(
            "--train.encoder-learning-rate was given, but the encoder is frozen: leave one out"
        )
    if config.train.compile and config.train.activation_checkpointing:
        raise ConfigError(
            "--train.compile decides by itself what it keeps, but --train.activation-checkpointing "
            "was given: leave one out"
        )
    if config.train.micro_batch_size is not None and config.objective.balance != "sum":
        raise ConfigError(
            f"--balance {config.objective.balance} needs all images of a step at a time, but "
            "--train.micro-batch-size was given: leave one out"
        )
    if config.train.sync_batch_norm and find_device(config.train.device).type != "cuda":
        raise ConfigError("--train.sync-batch-norm needs GPUs: leave it out")
    needs = {"dice": "segment", "mse": "reconstruct"}
    select = config.evaluate.select
    tasks = config.objective.tasks
    if select != "auto" and (needed := needs.get(select, "classify")) not in tasks:
        raise ConfigError(
            f"--evaluate.select {select} needs the task {needed}, but the tasks are "
            f"{', '.join(tasks)}: give --evaluate.select auto"
        )


def _check_tasks(config: RunConfig, data: ImageSet) -> None:
    tasks = config.objective.tasks
    possible = [task for task in tasks if task != "classify" or len(data.class_names) > 1]
    possible = [task for task in possible if task != "segment" or data.mask_names]
    if "classify" not in possible and "classify" in tasks:
        where = "they are the sub-folders of a folder, or a table's column 'label'"
        has = f"one class, {data.class_names[0]}" if data.class_names else f"no classes ({where})"
        raise ConfigError(
            f"{data.name} has {has}, so there is nothing to classify: "
            f"give --tasks {' '.join(possible) or 'reconstruct'}"
        )
    if "segment" not in possible and "segment" in tasks:
        raise ConfigError(
            f"{data.name} has no masks, so there is nothing to segment: "
            f"give --tasks {' '.join(possible) or 'classify'}"
        )
    if not any(config.objective.weight(task) for task in tasks):
        raise ConfigError("every task has weight 0, so there is nothing to learn")


def _check_balance(config: RunConfig) -> None:
    name = config.objective.balance
    if Balance(name, len(config.objective.tasks)).aggregator is None:
        return
    if config.model.freeze_encoder:
        raise ConfigError(
            f"--balance {name} combines gradients on the encoder, but --model.freeze-encoder was "
            "given: leave it out, or give --balance sum"
        )
    if config.train.precision == "16-mixed":
        raise ConfigError(
            f"--balance {name} can't scale gradients for --precision 16-mixed: "
            "give bf16-mixed or 32-true"
        )


def _check_images(config: RunConfig, data: ImageSet) -> None:
    """Refuse ways to draw and to augment images that make no sense for `data`."""
    allowed(config.train.augment, data, config.data.modality)
    if config.train.sampling == "balanced" and len(data.class_names) < 2:
        raise ConfigError(
            f"--train.sampling balanced draws each class as often, but {data.name} has "
            f"{len(data.class_names)} class(es): give --train.sampling shuffle"
        )
    if config.train.sampling == "balanced" and data.train.shard_sizes is not None:
        raise ConfigError(
            "--train.sampling balanced draws images from everywhere, but shards are read one after "
            "the other: give --objective.class-weights balanced instead"
        )
    if config.train.sampling == config.objective.class_weights == "balanced":
        raise ConfigError(
            "--train.sampling balanced and --objective.class-weights balanced would count rare "
            "classes twice: leave one out"
        )


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
            pretrained=model.pretrained and fresh,
            **model.options(),
        )
    check_takes(network, *data.size)
    report = None
    if fresh and model.weights is not None:
        report = load_weights(network, model.weights)
    if model.freeze_encoder:
        network.freeze_encoder()
    return network, report


def build_objective(config: RunConfig, data: ImageSet, layout: DenseLayout) -> Objective:
    """Return the losses, with the class weights that `config` asks for."""
    weights = None
    if config.objective.class_weights == "balanced" and data.class_names:
        label = torch.from_numpy(data.train.labels)
        weights = balanced_weights(label, len(data.class_names))
    return Objective(config.objective, layout, weights)
