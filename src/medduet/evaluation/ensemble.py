"""Several trained networks, or several views of each image, as one bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medduet._version import __version__
from medduet.config import DataConfig, Device
from medduet.data.cache import Progress
from medduet.data.modality import allowed, known_modality
from medduet.errors import ConfigError
from medduet.evaluation.evaluate import Evaluator
from medduet.models.ensemble import Ensemble
from medduet.runs.bundle import ModelBundle, load_bundle, save_bundle
from medduet.runs.config import BundleConfig, DataRecord, NetworkArguments
from medduet.runs.folder import RunFolder, is_run
from medduet.training.validation import summarize
from medduet.types import Modality, TestTime
from medduet.utils.hub import bundle_folder


class EnsembleRecord(NamedTuple):
    """An ensemble that was written.

    Attributes:
        path: its folder, a bundle.
        members: path of each member.
        images: name of the data set it was evaluated on, if it was.
        scores: by ``"val"`` and ``"test"`` the metrics of each member, then of the ensemble.
    """

    path: Path
    members: list[str]
    images: str
    scores: dict[str, list[dict[str, Any]]]


def ensemble(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    tta: TestTime = "none",
    data: DataConfig | None = None,
    modality: Modality = "auto",
    device: Device = "auto",
    progress: Progress = None,
) -> EnsembleRecord:
    """Write several bundles, or one with several views of each image, as one bundle.

    It has the inputs and outputs of its members, and predicts their mean, see
    `medduet.models.Ensemble`.

    Args:
        paths: bundles, runs or ``hf://OWNER/NAME``, trained on the same images in the same split.
        out: the folder to write.
        tta: views of each image: ``"none"``, ``"flip"``, ``"flips"`` or ``"turns"``.
        data: images to evaluate members and ensemble on; ``None`` for those of the first run.
        modality: what the images show; ``"auto"`` for that of the run.
        device: auto, cpu, cuda or cuda:1.
        progress: draws the progress of downloads and conversions.

    Returns:
        What was written, and how good it is beside its members.

    Raises:
        ConfigError: the members don't belong together, or the views would make the truth wrong.
        MissingFileError: there is no bundle at one of the paths.
        ModelError: a bundle is damaged, or says too little of itself.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} already exists: give another --out")
    if len(paths) < 2 and tta == "none":
        raise ConfigError(f"expected two networks, given {len(paths)}: add more, or --tta flip")
    folders = [bundle_folder(path) for path in paths]
    members, names = [load_bundle(folder) for folder in folders], [str(path) for path in paths]
    _check_same(members, names)
    runs = [folder for folder in folders if is_run(folder)]
    if modality == "auto" and runs:
        modality = RunFolder.open(runs[0]).run_config().data.modality
    _check_views(tta, members[0].config, modality)
    combined = combine([*map(load_bundle, folders)], tta)  # anew, as it takes their windows over
    images, scores = "", {}
    if data is not None or runs:
        evaluator = Evaluator.open((runs or folders)[0], data, device, progress)
        images, networks = evaluator.images.name, [*members, combined]
        ordinal = combined.config.network.ordinal
        for split in ("val", "test"):
            pool = evaluator.images.split(split)
            predictions = [evaluator.with_network(network).predict(pool) for network in networks]
            scores[split] = [summarize(each, ordinal=ordinal) for each in predictions]
        trained_on = combined.config.data
        if trained_on is not None and evaluator.images.fingerprint == trained_on.fingerprint:
            combined.config.metrics |= {split: rows[-1] for split, rows in scores.items()}
    save_bundle(out, combined.network.cpu(), combined.config)
    return EnsembleRecord(out, names, images, scores)


def _check_same(members: Sequence[ModelBundle], paths: Sequence[str]) -> None:
    """Raise `ConfigError` unless the networks are different ones of one task on the same images."""
    first = _task(members[0].config)
    weights = [member.config.weights_sha256 for member in members]
    for number, (member, path) in enumerate(zip(members, paths, strict=True)):
        member.config.usable(path)
        for name, value in _task(member.config).items():
            if value != first[name]:
                values = f"{first[name]} in {paths[0]} and {value} in {path}"
                raise ConfigError(f"expected members with the same {name}, given {values}")
        if (twin := weights.index(weights[number])) < number:
            raise ConfigError(f"{paths[twin]} and {path} are the same network: omit one")


def _task(config: BundleConfig) -> dict[str, Any]:
    """Return what members must share; normalisation is every member's own."""
    names = ("class_names", "mask_names", "multi_label", "layout", "precision")
    prepared = {"size", "channels", "fit", "window", "patch", "spacing"}
    return {name: getattr(config, name) for name in names} | {
        "preprocessing": config.preprocessing and config.preprocessing.model_dump(include=prepared),
        "images and split": config.data and config.data.fingerprint,
    }


def _check_views(tta: TestTime, config: BundleConfig, modality: Modality) -> None:
    data = config.data or DataRecord()
    modality = known_modality(data.info, modality)
    may = allowed(modality, [*config.class_names, *config.mask_names])
    name = data.name or "the data"
    if tta != "none" and not may.mirror:
        raise ConfigError(f"--tta {tta} mirrors, but a class of {name} says left or right: omit it")
    if tta in ("flips", "turns") and not may.turn:
        hint = "give --tta flip, or --modality microscopy or dermoscopy if they have none"
        raise ConfigError(f"--tta {tta} turns images, but {name} may have an upper side: {hint}")


def combine(members: Sequence[ModelBundle], tta: TestTime) -> ModelBundle:
    """Return members of one task as one bundle, on the CPU, without calibration or scores."""
    first = members[0].config
    network = Ensemble(
        [member.network for member in members],
        multi_label=first.multi_label,
        mask_channels=members[0].layout.mask_channels,
        test_time=tta,
    ).eval()
    records = [member.config.metrics for member in members]
    buffers = network.normalize.named_buffers()
    normalisation = {name: buffer.flatten().tolist() for name, buffer in buffers}
    assert first.preprocessing is not None
    changes = {
        "network": NetworkArguments.model_validate(network.arguments),
        "preprocessing": first.preprocessing.model_copy(update=normalisation),
        "weights_sha256": None,
        # Neither the numbers nor the calibration of a member hold for all; its detector does.
        "metrics": {
            "seed": [record.get("seed") for record in records],
            "selection": records[0].get("selection"),
            "selected_epoch": [record.get("selected_epoch") for record in records],
        },
        **dict.fromkeys(("calibration", "calibration_missing", "calibrated_on")),
        "members": [member.config.weights_sha256 for member in members],
        "versions": {"medduet": __version__, "torch": torch.__version__},
    }
    return ModelBundle(network, first.model_copy(update=changes))
