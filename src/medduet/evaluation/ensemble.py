"""Several trained networks, or several views of each image, as one bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medduet._version import __version__
from medduet.config import DataConfig, Device, Modality, TestTime
from medduet.data.cache import ProgressFactory
from medduet.data.modality import allowed
from medduet.errors import ConfigError
from medduet.evaluation.evaluate import Evaluator
from medduet.models.ensemble import Ensemble
from medduet.runs.bundle import ModelBundle, load_bundle, save_bundle
from medduet.runs.config import BundleConfig, DataRecord, NetworkArguments
from medduet.runs.folder import RunFolder, is_run
from medduet.training.validation import summarize
from medduet.utils.hub import bundle_folder

_SAME = ("class_names", "mask_names", "multi_label", "layout", "preprocessing", "precision")
"""Parts of ``config.json`` that members must have in common."""


@dataclass(frozen=True)
class EnsembleRecord:
    """An ensemble that was written.

    Attributes:
        path: its folder, a bundle.
        members: path of each member.
        images: the name of the set on which it was evaluated; empty if it was not.
        scores: for ``"val"`` and ``"test"`` the metrics with their intervals of each member, and
            last of the ensemble; empty if it was not evaluated.
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
    evaluate: bool = True,
    device: Device = "auto",
    progress: ProgressFactory | None = None,
) -> EnsembleRecord:
    """Write several bundles, or one with several views of each image, as one bundle.

    It has the inputs and outputs of its members, and predicts their mean, see
    `medduet.models.Ensemble`.

    Args:
        paths: bundles, finished runs or ``hf://OWNER/NAME``, trained on the same images in the
            same split.
        out: the folder to write.
        tta: test-time augmentation, the views of each image: ``"none"``, ``"flip"``, ``"flips"``
            or ``"turns"``.
        data: on which images to evaluate members and ensemble; ``None`` for those of the first run.
        modality: what the images show, see `medduet.DataConfig`; ``"auto"`` for that of the run.
        evaluate: whether to evaluate them on the validation and test split, if there are images.
        device: auto, cpu, cuda, cuda:1 or mps.
        progress: draws the progress of downloads and conversions.

    Returns:
        What was written, and how good it is beside its members.

    Raises:
        ConfigError: the members don't belong together, or the views would make the truth wrong.
        MissingFileError: there is no bundle at one of the paths.
        ModelError: a bundle is damaged, or says too little of itself.

    Example:
        >>> import tempfile, torch
        >>> from medduet import create_model, load
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in "ab":
        ...     network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
        ...     save_bundle(folder / name, network, {
        ...         "class_names": ["a", "b"],
        ...         "layout": {"mask_classes": 0, "image_channels": 0},
        ...         "preprocessing": {"size": [32, 32], "channels": 1},
        ...         "data": {"fingerprint": "x"}})
        >>> record = ensemble([folder / "a", folder / "b"], folder / "both", tta="flip")
        >>> load(record.path)(torch.zeros(3, 1, 32, 32)).class_logits.shape
        torch.Size([3, 2])
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already: give another --out")
    if len(paths) < 2 and tta == "none":
        raise ConfigError(
            f"expected several bundles or runs, given {len(paths)}: add more, or --tta flip"
        )
    names = [str(path) for path in paths]
    folders = [bundle_folder(path) for path in paths]
    bundles = [load_bundle(folder) for folder in folders]
    _check_same(names, bundles)
    runs = [folder for folder in folders if is_run(folder)]
    if modality == "auto" and runs:
        modality = RunFolder.open(runs[0]).run_config().data.modality
    _check_views(tta, bundles[0].config, modality)
    combined = _combined(bundles, tta)
    images, scores = "", {}
    if evaluate and (data is not None or runs):
        evaluator = Evaluator.open(
            bundles[0],
            runs[0] if runs else folders[0],
            data=data,
            device=device,
            progress=progress,
        )
        images, config = evaluator.images.name, evaluator.config.evaluate
        for split in ("val", "test"):
            predictions = evaluator.predict_all([*bundles, combined], split)
            scores[split] = [summarize(each, config) for each in predictions]
        trained_on = combined.config.data
        if trained_on is not None and evaluator.images.fingerprint == trained_on.fingerprint:
            of_ensemble = {split: summaries[-1] for split, summaries in scores.items()}
            combined.config.metrics = combined.config.metrics | of_ensemble
    save_bundle(out, combined.network.cpu(), combined.config)
    return EnsembleRecord(out, names, images, scores)


def _check_same(paths: Sequence[str], bundles: Sequence[ModelBundle]) -> None:
    """Raise `ConfigError` unless the networks have the same task on the same images."""
    for path, bundle in zip(paths, bundles, strict=True):
        bundle.config.usable(path)
        if isinstance(bundle.network, Ensemble):
            raise ConfigError(f"{path} is an ensemble already: give its members")
    first, seen = _shared(bundles[0]), dict[str | None, str]()
    for path, bundle in zip(paths, bundles, strict=True):
        for name, value in _shared(bundle).items():
            if value != first[name]:
                raise ConfigError(
                    f"expected members with the same {name}, but {paths[0]} has {first[name]} and "
                    f"{path} {value}: they can't be one ensemble"
                )
        if (twin := seen.get(bundle.config.weights_sha256)) is not None:
            raise ConfigError(f"{twin} and {path} are the same network: leave one out")
        seen[bundle.config.weights_sha256] = path


def _shared(bundle: ModelBundle) -> dict[str, Any]:
    values = {name: bundle.config.to_json()[name] for name in _SAME}
    preprocessing = values["preprocessing"]
    # Members normalise each by its own mean and spread.
    values["preprocessing"] = {
        name: preprocessing[name] for name in ("size", "channels", "fit", "window")
    }
    data = bundle.config.data
    return values | {"images and split": None if data is None else data.fingerprint}


def _check_views(tta: TestTime, config: BundleConfig, modality: Modality) -> None:
    """Raise `ConfigError` for views of images on which the truth would be another one."""
    if tta == "none":
        return
    data = config.data or DataRecord()
    may = allowed(data.info, [*config.class_names, *config.mask_names], modality)
    name = data.name or "the data"
    if not may.mirror:
        raise ConfigError(
            f"--tta {tta} mirrors images, but a class of {name} says left or right: leave it out"
        )
    if tta != "flip" and not may.turn:
        raise ConfigError(
            f"--tta {tta} turns images upside down, but those of {name} may have an upper side: "
            "give --tta flip, or --modality microscopy or dermoscopy if they have none"
        )


def _combined(bundles: Sequence[ModelBundle], tta: TestTime) -> ModelBundle:
    first = bundles[0].config
    network = Ensemble(
        [bundle.network for bundle in bundles],
        multi_label=first.multi_label,
        mask_channels=bundles[0].layout.mask_channels,
        test_time=tta,
    ).eval()
    metrics = [bundle.config.metrics for bundle in bundles]
    buffers = network.normalize.named_buffers()
    normalisation = {name: buffer.flatten().tolist() for name, buffer in buffers}
    assert first.preprocessing is not None
    changes = {
        "network": NetworkArguments.model_validate(network.arguments),
        "preprocessing": first.preprocessing.model_copy(update=normalisation),
        "weights_sha256": None,
        # Neither the numbers nor the calibration nor the detector of a member hold for all.
        "metrics": {
            "seed": [each.get("seed") for each in metrics],
            "selection": metrics[0].get("selection"),
            "selected_epoch": [each.get("selected_epoch") for each in metrics],
        },
        **dict.fromkeys(("calibration", "calibration_missing", "calibrated_on", "ood")),
        "members": [bundle.config.weights_sha256 for bundle in bundles],
        "versions": {"medduet": __version__, "torch": torch.__version__},
    }
    return ModelBundle(network, first.model_copy(update=changes))
