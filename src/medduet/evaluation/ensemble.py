"""Several trained networks, or several views of each image, as one bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medduet._version import __version__
from medduet.config import DataConfig, Device, Modality, TestTime
from medduet.data.augment import allowed_for
from medduet.data.cache import ProgressFactory
from medduet.errors import ConfigError, ModelError
from medduet.evaluation.evaluate import judge_bundles
from medduet.models.ensemble import Ensemble
from medduet.runs.bundle import ModelBundle, load_bundle, save_bundle
from medduet.runs.folder import RunFolder, is_run
from medduet.training.validation import summarize
from medduet.utils.hub import bundle_folder

_SAME = {
    "classes": ("class_names",),
    "masks": ("mask_names",),
    "kind of labels": ("multi_label",),
    "tasks": ("layout",),
    "channels": ("preprocessing", "channels"),
    "image size": ("preprocessing", "size"),
    "fit": ("preprocessing", "fit"),
    "window": ("preprocessing", "window"),
    "images or split": ("data", "fingerprint"),
}
"""What members must have in common, and where it stands in ``config.json``."""


@dataclass(frozen=True)
class EnsembleRecord:
    """An ensemble that was written.

    Attributes:
        path: its folder, a bundle.
        members: what each member is called.
        images: the name of the set on which it was judged; empty if it was not.
        scores: for ``"val"`` and ``"test"`` the metrics with their intervals of each member, and
            last of the ensemble; empty if it was not judged.
    """

    path: Path
    members: list[str]
    images: str
    scores: dict[str, list[dict[str, Any]]]


def ensemble(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    test_time: TestTime = "none",
    data: DataConfig | None = None,
    modality: Modality = "auto",
    evaluate: bool = True,
    device: Device = "auto",
    progress: ProgressFactory | None = None,
) -> EnsembleRecord:
    """Write several bundles, or one with several views of each image, as one bundle.

    It takes and gives what its members do, and says their mean, see `medduet.models.Ensemble`.

    Args:
        paths: bundles, finished runs or ``hf://OWNER/NAME``, trained on the same images in the
            same split.
        out: the folder to write.
        test_time: views of each image: ``"none"``, ``"flip"``, ``"flips"`` or ``"turns"``.
        data: on which images to judge members and ensemble; ``None`` for those of the first run.
        modality: what the images show, see `medduet.DataConfig`; ``"auto"`` for that of the run.
        evaluate: whether to judge them on the validation and test split, if there are images.
        device: see `medduet.TrainConfig`.
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
        ...         "multi_label": False, "class_names": ["a", "b"], "mask_names": [],
        ...         "layout": {"mask_classes": 0, "image_channels": 0},
        ...         "preprocessing": {"size": [32, 32], "channels": 1},
        ...         "data": {"fingerprint": "x", "info": {}}})
        >>> record = ensemble([folder / "a", folder / "b"], folder / "both", test_time="flip")
        >>> load(record.path)(torch.zeros(3, 1, 32, 32)).class_logits.shape
        torch.Size([3, 2])
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already: give another --out")
    if len(paths) < 2 and test_time == "none":
        raise ConfigError(
            f"expected several bundles or runs, given {len(paths)}: add more, or --test-time flip"
        )
    names = [str(path) for path in paths]
    folders = [bundle_folder(path) for path in paths]
    bundles = [load_bundle(folder) for folder in folders]
    _check_same(names, bundles)
    runs = [folder for folder in folders if is_run(folder)]
    if modality == "auto" and runs:
        modality = RunFolder.open(runs[0]).run_config().data.modality
    _check_views(test_time, bundles[0].config, modality)
    both = _combined(bundles, test_time)
    images, scores = "", {}
    if evaluate and (data is not None or runs):
        judged = judge_bundles(
            [*bundles, both],
            runs[0] if runs else folders[0],
            data=data,
            splits=("val", "test"),
            device=device,
            progress=progress,
        )
        images = judged.images.name
        scores = {
            split: [summarize(each, judged.config.evaluate) for each in found]
            for split, found in judged.predictions.items()
        }
        if judged.images.fingerprint == both.config["data"]["fingerprint"]:
            both.config["metrics"] |= {split: found[-1] for split, found in scores.items()}
    save_bundle(out, both.network.cpu(), both.config)
    return EnsembleRecord(out, names, images, scores)


def _check_same(paths: Sequence[str], bundles: Sequence[ModelBundle]) -> None:
    """Raise `ConfigError` unless the networks answer the same question, from the same images."""
    for path, bundle in zip(paths, bundles, strict=True):
        needed = {"multi_label", "layout", "preprocessing", "data"}
        if missing := sorted(needed - set(bundle.config)):
            raise ModelError(
                f"{path} does not say what its outputs mean ({', '.join(missing)} missing): give "
                "a finished run, or its bundle"
            )
        if isinstance(bundle.network, Ensemble):
            raise ConfigError(f"{path} is an ensemble already: give its members")
    for place, (path, bundle) in enumerate(zip(paths, bundles, strict=True)):
        for what, keys in _SAME.items():
            first, other = _at(bundles[0], keys), _at(bundle, keys)
            if first != other:
                raise ConfigError(
                    f"expected members with the same {what}, but {paths[0]} has {first} and "
                    f"{path} {other}: they can't be one ensemble"
                )
        for earlier in range(place):
            if bundles[earlier].config["weights_sha256"] == bundle.config["weights_sha256"]:
                raise ConfigError(
                    f"{paths[earlier]} and {path} are the same network: leave one out"
                )


def _at(bundle: ModelBundle, keys: Sequence[str]) -> Any:
    found: Any = bundle.config
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _check_views(test_time: TestTime, config: dict[str, Any], modality: Modality) -> None:
    """Raise `ConfigError` for views of images on which the truth would be another one."""
    if test_time == "none":
        return
    data, names = config["data"], [*config["class_names"], *config["mask_names"]]
    may = allowed_for(data.get("info", {}), names, modality)
    name = data.get("name", "the data")
    if not may.mirror:
        raise ConfigError(
            f"--test-time {test_time} mirrors images, but a class of {name} says left or right: "
            "leave it out"
        )
    if test_time != "flip" and not may.turn:
        raise ConfigError(
            f"--test-time {test_time} turns images upside down, but those of {name} may have an "
            "upper side: give --test-time flip, or --modality microscopy or dermoscopy if they "
            "have none"
        )


def _combined(bundles: Sequence[ModelBundle], test_time: TestTime) -> ModelBundle:
    first = bundles[0].config
    network = Ensemble(
        [bundle.network for bundle in bundles],
        multi_label=first["multi_label"],
        mask_channels=bundles[0].layout.mask_channels,
        test_time=test_time,
    ).eval()
    kept = ("class_names", "mask_names", "multi_label", "layout", "preprocessing", "data")
    metrics = [bundle.config.get("metrics", {}) for bundle in bundles]
    config = {key: first[key] for key in kept} | {
        "network": network.arguments,
        # Neither the numbers nor the calibration of a member hold for the ensemble.
        "metrics": {
            "seed": [each.get("seed") for each in metrics],
            "selection": metrics[0].get("selection"),
            "selected_epoch": [each.get("selected_epoch") for each in metrics],
        },
        "members": [bundle.config["weights_sha256"] for bundle in bundles],
        "versions": {"medduet": __version__, "torch": torch.__version__},
    }
    config["preprocessing"] = config["preprocessing"] | {
        name: buffer.flatten().tolist() for name, buffer in network.normalize.named_buffers()
    }
    return ModelBundle(network, config)
