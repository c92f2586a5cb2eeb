"""The model card of a bundle: what was trained, on what, how good it is, and for whom."""

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from medduet.metrics.names import METRICS
from medduet.runs.config import BundleConfig

_METRICS = {
    "accuracy": ("image-classification", "accuracy"),
    "auc": ("image-classification", "roc_auc"),
    "dice": ("image-segmentation", "dice"),
    "dice_nonempty": ("image-segmentation", "dice"),
    "iou": ("image-segmentation", "mean_iou"),
    "mse": ("image-to-image", "mse"),
}
"""What the card shows, and the names of task and metric on the hub."""


def model_card(
    config: BundleConfig, address: str = "path/of/this/folder", licence: str | None = None
) -> str:
    """Return the Markdown model card of a bundle, whose names may be a stranger's."""
    template = resources.files("medduet") / "runs" / "templates" / "card.md"
    rows = list(_rows(config))
    card = ModelCard.from_template(
        _card_data(config, licence, rows),
        template_str=template.read_text("utf-8"),
        config=config,
        address=address,
        rows=rows,
        escape=escape,
    )
    return f"{str(card).strip()}\n"


def escape(text: object) -> str:
    """Return any text as one line of Markdown that shows it as it is."""
    line = re.sub(r"([\\`*_\[\]<>&|~$#:@!])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)


def _card_data(
    config: BundleConfig, licence: str | None, rows: Sequence[dict[str, Any]]
) -> ModelCardData:
    tags = ["medical-imaging", "multi-task"]
    tags += ["image-classification"] if config.class_names else []
    tags += ["image-segmentation"] if config.mask_names else []
    name = " ".join(config.data.name.split()) if config.data else ""
    dataset = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    results = [
        EvalResult(
            task_type=_METRICS[row["key"]][0],
            dataset_type=dataset,
            dataset_name=name,
            dataset_split=row["split"],
            metric_type=_METRICS[row["key"]][1],
            metric_name=f"{row['name']}, n = {row['n']}",
            metric_value=row["value"],
        )
        for row in rows
        if dataset
    ]
    return ModelCardData(
        license=licence,
        library_name="medduet",
        tags=tags,
        datasets=[dataset] if dataset else None,
        model_name=" ".join(config.network.name.split()) if results else None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )


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
