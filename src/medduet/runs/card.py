"""The model card of a bundle: what was trained, on what, how good it is, and for whom."""

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from medduet.metrics.names import METRICS
from medduet.runs.config import BundleConfig

_METRICS = ("accuracy", "auc", "dice", "dice_nonempty", "iou", "mse")


def model_card(
    config: BundleConfig, address: str = "path/of/this/folder", licence: str | None = None
) -> str:
    """Return the Markdown model card of a bundle, whose names may be a stranger's."""
    template = resources.files("medduet") / "runs" / "templates" / "card.md"
    tags = ["medical-imaging", "multi-task"]
    tags += ["image-classification"] if config.class_names else []
    tags += ["image-segmentation"] if config.mask_names else []
    dataset = re.sub(r"[^\w.-]+", "-", config.data.name if config.data else "", flags=re.ASCII)
    about = ModelCardData(
        license=licence,
        library_name="medduet",
        tags=tags,
        datasets=[dataset.strip("-.")] if dataset.strip("-.") else None,
        ignore_metadata_errors=False,
    )
    card = ModelCard.from_template(
        about,
        template_str=template.read_text("utf-8"),
        config=config,
        address=address,
        rows=list(_rows(config)),
        escape=escape,
    )
    return f"{str(card).strip()}\n"


def escape(text: object) -> str:
    """Return any text as one line of Markdown that shows it as it is."""
    line = re.sub(r"([\\`*_\[\]<>&|~$#:@!])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)


def _rows(config: BundleConfig) -> Iterator[dict[str, Any]]:
    for split in ("val", "test"):
        summary = config.metrics.get(split, {})
        for key in _METRICS:
            if isinstance(value := summary.get(key), float):
                n = summary["n"]
                if key.startswith(("dice", "iou")):  # masks may be known of other images
                    n = summary.get(f"{key}_n") or summary.get("dice_n") or n
                row = {"key": key, "split": split, "n": n, "value": value}
                yield row | {"name": METRICS[key].name}
