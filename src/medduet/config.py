"""The one place where settings and their defaults live.

Recipes are YAML files beside this module, which name only what differs from the defaults below.
"""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import tyro
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medduet.errors import ConfigError, MissingFileError, closest
from medduet.types import TASKS, Augment, Balance, Fit, Modality, Precision, Preset, Select, Task

Settings = TypeVar("Settings", bound=BaseModel)
Value = TypeVar("Value")
# What a recipe may leave open, as None, is filled by `experiments.plan` before anything reads it.
if TYPE_CHECKING:
    Planned = Annotated[Value, None]
else:
    Planned = Value | None
_MOST_FINDINGS = 10
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_MOST_BYTES, _MOST_ALIASES = 1 << 16, 16  # of a recipe, in which aliases repeat values
_RECIPES = Path(__file__).with_name("recipes")


def _spelled(pattern: str, expected: str) -> AfterValidator:
    """Return a check that a text matches `pattern`, with a message for people."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


TimeBudget = Annotated[str, _spelled(r"[1-9]\d*[smh]", "seconds, minutes or hours: 90s, 45m, 2h")]
DEVICE = r"auto|cpu|cuda(:\d+)?"
Device = Annotated[str, _spelled(DEVICE, "auto, cpu, cuda or cuda:N")]
"""A device as it is typed; `utils.devices.find_device` looks for it."""
SplitSource = Annotated[str, _spelled(r"auto|given|made|.+\.csv", "auto, given, made or a .csv")]
Size = Annotated[int, Field(ge=1)]
"""Side of the images in pixels."""
_several = BeforeValidator(lambda value: (value,) if isinstance(value, int | float) else value)
Sides = Annotated[tuple[Size, ...], _several, Field(min_length=1, max_length=3)]
"""Height and width, depth before them for volumes, or one number for all."""
Spacing = Annotated[tuple[Annotated[float, Field(gt=0)], ...], _several, Field(max_length=3)]
"""Likewise, the distance of pixels in mm."""


def _flag(name: str) -> Any:
    return tyro.conf.arg(aliases=(f"--{name}",))


class Frozen(BaseModel):
    """Settings that never change and know no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Frozen):
    """Where the images come from."""

    name: Annotated[str, _flag("data")] = ""
    """A MedMNIST flag, an .npz, a .zarr, a folder or .csv of images, phantom or phantom3d."""
    size: Annotated[Sides | None, _flag("size")] = None
    """Side of the images in pixels, or height and width (of volumes depth, height, width). None: an
    .npz's own, 28 for MedMNIST; of files theirs if all are equal squares of up to 224, else 224."""
    dims: Literal[2, 3] | None = None
    """2: files of several slices are loose images; 3: volumes. None: volumes if all are such."""
    spacing: Annotated[Spacing | None, _flag("spacing")] = None
    """mm between (slices,) rows and columns. None: volumes the median of the set, images as is."""
    medmnist_size: Literal[28, 64, 128, 224] | None = None
    """Which of MedMNIST's files to resize; None: the smallest that is not smaller than size."""
    cache: Path | None = None
    """Where downloads and unpacked arrays live; else $MEDDUET_CACHE, else ~/.cache/medduet."""
    mirror: str | None = None
    """Base URL to download MedMNIST files from instead of Zenodo."""
    cache_gb: float = Field(1.0, ge=0)
    """Memory in GB for shards of a .zarr, for images and for masks of each split."""
    count: int | None = Field(None, ge=1)
    """Number of phantoms, over all three splits."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB), of phantoms and image files; None: grey if every file is."""
    masks: Path | None = None
    """Folder or names of masks, such as *_lesion.png or 'lung masks/*'. None: the usual names."""
    mask_values: str | None = None
    """What values of masks mean: 0:background,128:benign,255:malignant,254:ignore. A colour is
    #ff0000:NAME, all other values are `*:NAME`. None: decided from all masks, and told."""
    fit: Fit | Literal["longest"] = "pad"
    """Image files become square by black borders, by stretching, or by their centre alone;
    longest: size is that of the longest side, and borders are no wider than the set needs."""
    window: tuple[float, float] | Literal["zscore", "own"] | None = None
    """Grey values to show: centre and width, zscore (mean and 8 standard deviations of each file),
    or own (the file's window, else its range). None: own, but as nnU-Net for CT and MR volumes."""
    skip_broken: bool = False
    """Leave image files out that can't be read, instead of stopping."""
    split: SplitSource = "auto"
    """given; made; a .csv with the columns image and split; auto: given, or made where none is."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test in a split that is made."""
    folds: int | None = Field(None, ge=3)
    """Cross-validation: parts of equal size, each of them test once; see the recipe cross."""
    fold: int = Field(0, ge=0)
    """Which of the parts is test; the next one is val."""
    keep_test: bool = False
    """Make folds of train and val alone: the part is val, and test stays."""
    group_by: Literal["auto", "given", "duplicates", "none"] = "auto"
    """What stays together when a split is made: groups given, near-duplicates; auto: both."""
    seed: int = Field(0, ge=0)
    """Seed of phantoms, and of a split that is made."""
    modality: Modality = "auto"
    """Kind of image. auto: as MedMNIST or the files tell it; else they are mirrored at most."""

    @field_validator("mask_values")
    @classmethod
    def _name_values(cls, text: str | None) -> str | None:
        pairs = [part.strip().partition(":") for part in (text or "").split(",")]
        values = [value.strip().lower() for value, _, _ in pairs]
        names = [name.strip() for *_, name in pairs]
        values = [value if value[:1] in "#*" else value.lstrip("0") or "0" for value in values]
        if text is not None and (
            not all(re.fullmatch(r"\d{1,5}|#[0-9a-f]{6}|\*", value) for value in values)
            or len(set(values)) < len(values)
            or not all(names)
            or "background" not in names
            or not {*names} - {"background", "ignore"}
        ):
            raise ValueError("expected VALUE:NAME,... such as 0:background,128:benign,254:ignore")
        return text and ",".join(map(":".join, zip(values, names, strict=True)))

    @field_validator("cache")
    @classmethod
    def _is_of_this_machine(cls, cache: Path | None, info: ValidationInfo) -> Path | None:
        return None if info.context else cache

    @model_validator(mode="after")
    def _are_shares_and_a_fold(self) -> Self:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError("expected --data.fractions above 0 that add up to 1, as 0.7 0.1 0.2")
        if self.fold >= (self.folds or 1) or (self.keep_test and self.folds is None):
            raise ValueError(f"expected --data.folds above --data.fold, given {self.folds}")
        return self


class ModelConfig(Frozen):
    """The network. What is None is the network's own choice, or decided with its name."""

    name: Annotated[Planned[str], _flag("model")] = "vovunet_var"
    """A name from `medduet models`, timm:NAME, or smp:DECODER/ENCODER."""
    width: int | None = Field(None, ge=1)
    """U-Nets: channels of the first level, twice as many in each below. None: 64 for most."""
    upsampling: Literal["transpose", "bilinear"] | None = None
    """U-Nets: how the decoder enlarges its maps. None: transpose."""
    kernel_size: int | None = Field(None, ge=1)
    """adares_unet: side of its kernels, odd."""
    activation: str | None = None
    """adares_unet: relu, leaky_relu, elu, gelu or silu."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """adares_unet: in its blocks; timm and smp: before the class head."""
    pretrained: bool = False
    """timm and smp: start from the encoder weights that are published for it."""
    weights: Path | None = None
    """Start from a .safetensors file, a bundle or a run, as far as names and shapes agree."""
    freeze_encoder: bool = False
    """Train the heads and the decoder only."""

    def options(self) -> dict[str, Any]:
        """Return the options of the network that are set."""
        names = {"width", "upsampling", "kernel_size", "activation", "dropout"}
        return self.model_dump(include=names, exclude_none=True)


class ObjectiveConfig(Frozen):
    """What is learnt."""

    tasks: Annotated[Planned[tuple[Task, ...]], _flag("tasks")] = ("classify", "reconstruct")
    """Any of classify, segment (needs masks) and reconstruct (the image itself)."""
    classify_weight: float = Field(1.0, ge=0)
    """Factor of the classification loss."""
    segment_weight: float = Field(1.0, ge=0)
    """Factor of the segmentation loss."""
    reconstruct_weight: float = Field(1.0, ge=0)
    """Factor of the reconstruction loss."""
    ordinal: bool = False
    """Whether classes are grades in their order, such as 0, 1, 2: learnt as in CORN."""
    class_weights: Literal["none", "balanced"] = "none"
    """Whether rare classes of the train split count more in the classification loss."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread over all classes in the classification loss."""
    balance: Annotated[Balance, _flag("balance")] = "sum"
    """How losses are added: as they are (sum), or by weights that are learnt (uncertainty)."""

    @field_validator("tasks")
    @classmethod
    def _some_tasks_once(cls, tasks: tuple[Task, ...] | None) -> tuple[Task, ...] | None:
        if tasks is None:
            return None
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"expected at least one task of {', '.join(TASKS)}, each once")
        return tuple(task for task in TASKS if task in tasks)


class TrainConfig(Frozen):
    """How the network is fitted."""

    preset: Annotated[Preset, _flag("preset")] = "balanced"
    """How long to train if epochs are None. best: an ensemble over five folds of train and val."""
    time_budget: Annotated[TimeBudget | None, _flag("time-budget")] = None
    """Longest training time, such as 90m or 2h; epochs that are None are chosen to fit."""
    epochs: Annotated[Planned[int], _flag("epochs")] = Field(10, ge=1)
    """Passes over the train split."""
    patch: Annotated[Sides | None, _flag("patch")] = None
    """Sides of the patches to train on; prediction slides a window. None: whole images."""
    batch_size: Annotated[Planned[int], _flag("batch-size")] = Field(16, ge=2)
    """Images per step, over all processes together."""
    learning_rate: Annotated[Planned[float], _flag("lr")] = Field(1e-4, gt=0)
    """Largest learning rate."""
    encoder_learning_rate: float | None = Field(None, gt=0)
    """That of the encoder; None: a fifth where its weights were trained before, else the same."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or Adam with decoupled weight decay."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizer."""
    warmup_epochs: int = Field(0, ge=0)
    """First epochs, in which the rate rises to its value in equal steps."""
    cosine_epochs: int | None = Field(None, ge=1)
    """Epochs over which the cosine takes the rate to zero; None: all epochs. The paper: 100."""
    micro_batch_size: int | None = Field(None, ge=2)
    """Images computed at a time on each process, whose gradients add up; None: as memory allows."""
    grad_clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient; larger ones are scaled down. None: no clipping."""
    mask_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the patches that are blanked in the input and then rebuilt, for pretraining."""
    ema: Planned[float] = Field(0.0, ge=0, lt=1)
    """Evaluate and keep a moving average of the weights; its decay per step, such as 0.99."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many epochs without a better validation score; None: never."""
    augment: Planned[Augment] = "none"
    """flip: mirror; light: move, brightness; strong: bend, noise, blur."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """shuffle: each image once per epoch; balanced: all classes equally often."""
    seed: Annotated[int, _flag("seed")] = Field(0, ge=0)
    """Seed of the initial weights, the order of the images and the augmentation."""
    device: Annotated[Device, _flag("device")] = "auto"
    """auto, cpu, cuda or cuda:1."""
    precision: Annotated[Precision, _flag("precision")] = "auto"
    """float32, or bfloat16 where that is safe; auto: bfloat16 if the machine has it."""
    compile: bool = False
    """Compile the network by torch.compile: a minute first, then faster, mostly on GPUs."""

    @property
    def budget_seconds(self) -> float:
        """The longest time of training in seconds."""
        budget = self.time_budget
        return float("inf") if budget is None else int(budget[:-1]) * _SECONDS[budget[-1]]

    @property
    def remedy(self) -> str:
        """What to do where losses are not finite."""
        clip = ", or set --train.grad-clip 1" if self.grad_clip is None else ""
        return f"lower --lr, which is {self.learning_rate:g}{clip}"

    deterministic: bool = False
    """GPUs: the same result each time, by slower kernels where need be; CPUs give it anyway."""
    sync_batch_norm: bool = False
    """GPUs: batch normalisation over the images of all processes."""


class EvaluateConfig(Frozen):
    """How the network is evaluated."""

    protocol: Literal["honest", "paper"] = "honest"
    """honest: the epoch is selected on val. paper: also the best test epoch, labelled so."""
    select: Select = "auto"
    """Validation metric that selects the epoch; auto: mean of AUC and Dice, of those that apply;
    last: the last epoch."""


class RunConfig(Frozen):
    """Everything that decides what a run does."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    out: Path | None = None
    """Folder of the run; None: runs/DATA-MODEL-seedN, with a number behind it if that is taken."""


def by_path(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run by their path, such as ``train.epochs``."""
    return {
        f"{section}.{name}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }


def recipe_names(kind: str = "") -> list[str]:
    """Return the names of the recipes of MedDuet, for runs or a ``"grid"``.

    Example:
        >>> recipe_names()
        ['auto', 'demo', 'paper', 'pretrain']
    """
    return sorted(path.stem for path in (_RECIPES / kind).glob("*.yaml"))


def load_recipe(name: str) -> RunConfig:
    """Return the recipe called `name`, or the one in the YAML file at that path.

    Raises:
        ConfigError: no such recipe, or a key or value in it that cannot be used.
        MissingFileError: `name` looks like a path and is not there.

    Example:
        >>> load_recipe("paper").train.cosine_epochs
        100
    """
    return validate(RunConfig, read_recipe(name, ""), f"recipe {name}")


def read_recipe(name: str, kind: str) -> Any:
    """Return what the recipe of a `kind` (see `recipe_names`) or the YAML file `name` says."""
    if name in recipe_names(kind):
        content = (_RECIPES / kind / f"{name}.yaml").read_bytes()
    elif not name.endswith((".yaml", ".yml")):
        hint = closest(name, recipe_names(kind), "give the path of a .yaml file")
        raise ConfigError(f"unknown recipe '{name}': {hint}")
    elif Path(name).is_file():
        content = Path(name).read_bytes()
        if len(content) > _MOST_BYTES or len(re.findall(rb"[\s\[,]\*\w", content)) > _MOST_ALIASES:
            most = f"{_MOST_BYTES >> 10} KB and {_MOST_ALIASES} aliases"
            raise ConfigError(f"recipe {name}: expected at most {most}, given more")
    else:
        raise MissingFileError(f"expected a recipe at {name}, but there is no such file")
    try:
        values = yaml.safe_load(content)
    except Exception as error:  # of many kinds, as for dates and numbers that are none
        raise ConfigError(f"recipe {name} is not YAML that can be used: {error}") from error
    return {} if values is None else values


def validate(kind: type[Settings], values: Any, origin: str, saved: bool = False) -> Settings:
    """Return plain `values` as settings; ConfigError says in one line what of `origin` is wrong.

    Those that are `saved` in a folder have no cache, which would be that of another machine.
    """
    try:
        return kind.model_validate(values, context=saved)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {describe(error, kind)}") from error


def describe(error: ValidationError, root: type[BaseModel] = RunConfig) -> str:
    """Return the findings of pydantic in one line, with the closest names for unknown keys."""
    findings = []
    for item in error.errors()[:_MOST_FINDINGS]:
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        if item["type"] == "extra_forbidden":
            section = root
            for part in item["loc"][:-1]:
                field = section.model_fields.get(str(part))
                if field is not None and isinstance(field.annotation, type(BaseModel)):
                    section = field.annotation
            names = section.model_fields
            findings.append(f"unknown key {place}: {closest(str(item['loc'][-1]), names)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            findings.append(f"{place}: {message}, given {reprlib.repr(item['input'])}")
    return "; ".join(findings)
