"""The networks by name."""

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch

from medduet.errors import DownloadError, ModelError, closest
from medduet.models.base import Cost, DuetNetwork, NumbersOnCPU, check_takes, network_cost
from medduet.models.blocks import (
    ACTIVATIONS,
    Block,
    ResidualUnit,
    double_conv,
    mobilevit_unit,
    osa_unit,
)
from medduet.models.convolutions import guard_depthwise
from medduet.models.inception import dense_inception_unet
from medduet.models.unet import Sharpen, UNet, Upsampling
from medduet.types import KINDS

TASK_PAPER = "Li, Li, Ting: A Study of Multi-Task Learning Using a VoVNet-OSA Block Enhanced U-Net"
_PARTS = {"block", "stem", "pool", "enlarge", "skip", "head"}
"""Parameters of `UNet` that are no options: each choice of them is a network with a name."""


@dataclass(frozen=True)
class ModelSpec:
    """A network: how it is built, summary, source, and the licence of pretrained weights."""

    build: Callable[..., DuetNetwork]
    summary: str
    paper: str
    licence: str | None = None

    @property
    def options(self) -> set[str]:
        """The options that `create_model` takes for it."""
        bound = set(self.build.keywords) if isinstance(self.build, partial) else set()
        parameters = inspect.signature(self.build).parameters.values()
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        return keywords - bound - _PARTS - {"pretrained"}


def adares_unet(
    *sizes: int,
    width: int = 32,
    upsampling: Upsampling = "transpose",
    kernel_size: int = 3,
    activation: str = "relu",
    dropout: float = 0.1,
) -> UNet:
    """Build AdaResU-Net, doi:10.1016/j.neucom.2019.01.110."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ModelError(f"expected an odd kernel_size such as 3 or 5, given {kernel_size}")
    if activation not in ACTIVATIONS:
        raise ModelError(f"unknown activation '{activation}': {closest(activation, ACTIVATIONS)}")
    if not 0 <= dropout < 1:
        raise ModelError(f"expected a dropout of at least 0 and below 1, given {dropout}")
    block: Block = partial(
        ResidualUnit, kernel_size=kernel_size, activation=activation, dropout=dropout
    )
    return UNet(*sizes, block=block, stem=block, width=width, upsampling=upsampling)


_unet = partial(UNet, block=double_conv)
MODELS: dict[str, ModelSpec] = {
    "adares_unet": ModelSpec(
        adares_unet,
        "U-Net of residual blocks with kernel size, width, activation and dropout as options",
        "AdaResU-Net, doi:10.1016/j.neucom.2019.01.110",
    ),
    "dense_inception_unet": ModelSpec(
        dense_inception_unet,
        "U-Net of Inception-Res and Dense-Inception blocks",
        "DENSE-INception U-Net, doi:10.1016/j.cmpb.2020.105395",
    ),
    "mobilevitv2_unet_var": ModelSpec(
        partial(UNet, block=mobilevit_unit),
        "U-Net of MobileViT-v2 blocks with a class head",
        f"MobileViT-v2, arXiv:2206.02680; in the authors' code of {TASK_PAPER}",
    ),
    "sharp_unet": ModelSpec(
        partial(_unet, skip=Sharpen),
        "U-Net whose skips pass a fixed sharpening kernel",
        "Sharp U-Net, doi:10.1016/j.combiomed.2021.104699",
    ),
    "unet": ModelSpec(_unet, "U-Net of double convolutions", "U-Net, arXiv:1505.04597"),
    "unet_var": ModelSpec(
        _unet,
        "U-Net of double convolutions with a class head",
        f"U-Net, arXiv:1505.04597; with the class head of {TASK_PAPER}",
    ),
    "vovunet_var": ModelSpec(
        partial(UNet, block=osa_unit),
        "U-Net of one-shot aggregation units with a class head",
        TASK_PAPER,
    ),
}
"""The networks that have a name of their own; a dict, so a script may add one of its own."""

_CLASSIFIERS = {
    "ResNet, arXiv:1512.03385": ("resnet18", "resnet50"),
    "DenseNet, arXiv:1608.06993": ("densenet121", "densenet201"),
    "MobileNetV3, arXiv:1905.02244": ("mobilenetv3_small_100", "mobilenetv3_large_100"),
    "ConvNeXt V2, arXiv:2301.00808": ("convnextv2_atto", "convnextv2_base"),
    "EVA-02, arXiv:2303.11331": ("eva02_small_patch14_224", "eva02_base_patch14_224"),
}
PAPER_CLASSIFIERS = {f"timm:{x}": paper for paper, names in _CLASSIFIERS.items() for x in names}
"""The classifiers in the authors' runs of VovUnet_Var, by their names here, with their papers."""


def find_model(name: str) -> ModelSpec:
    """Return the entry of one of `MODELS`, ``timm:NAME``, or ``smp:ARCHITECTURE/ENCODER``."""
    if name in MODELS:
        return MODELS[name]
    if name.startswith("timm:"):
        return _timm_spec(name)
    if name.startswith("smp:"):
        return _smp_spec(name)
    raise _unknown(name, name, {key: key for key in MODELS} | _timm_names("timm:"))


def _unknown(name: str, typed: str, choices: Mapping[str, str]) -> ModelError:
    near = difflib.get_close_matches(typed[:100], sorted(choices), n=5, cutoff=0.0)
    closest_five = ", ".join(choices[each] for each in near)
    hint = f"the closest are {closest_five}; 'medduet models' lists more"
    return ModelError(f"unknown network '{name}': {hint}")


def _timm_names(prefix: str) -> dict[str, str]:
    return {name: prefix + name for name in timm.list_models()}


def model_names(patterns: Sequence[str]) -> list[str]:
    """Return the names that match shell patterns (``timm:*convnext*``); the paper's for none."""
    if not patterns:
        return [*MODELS, *PAPER_CLASSIFIERS, "smp:unet/resnet34", "smp:fpn/tu-convnext_tiny"]
    import segmentation_models_pytorch as smp

    decoders, encoders = smp.MODEL_ARCHITECTURES_MAPPING, smp.encoders.encoders
    libraries = list(_timm_names("timm:").values())
    libraries += [f"smp:{decoder}/{encoder}" for decoder in decoders for encoder in encoders]
    names = []
    for pattern in patterns:
        # The many networks of libraries are matched only by patterns that name the library.
        matching = fnmatch.filter([*MODELS, *(libraries if ":" in pattern else ())], pattern)
        if not matching and set(pattern) & set("*?["):
            raise ModelError(f"no network matches '{pattern}': try 'timm:*resnet*'")
        if not matching:
            find_model(pattern)
        names += matching or [pattern]
    return names


def create_model(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    dense_channels: int = 0,
    dims: int = 2,
    flat_levels: Sequence[int] = (0, 0, 0),
    ordinal: bool = False,
    pretrained: bool = False,
    **options: Any,
) -> DuetNetwork:
    """Build the network called `name`, with fresh weights or with an encoder from the hub.

    Args:
        name: one of `MODELS`, ``timm:NAME`` or ``smp:ARCHITECTURE/ENCODER``.
        in_channels: channels C of the images.
        num_classes: classes K of the class head; 0 for none.
        dense_channels: channels D of the dense head; 0 for none, then the decoder is not built.
        dims: 2 for images; 3 for volumes, ``(N, C, D, H, W)``, see `medduet.models.volumes`.
        flat_levels: volumes: how many first levels of a U-Net leave each axis alone, as (1, 0, 0)
            where slices are twice as thick as pixels are wide.
        ordinal: whether classes are grades in their order, as in CORN.
        pretrained: fetch the encoder's weights (timm, smp), and normalise as they expect.
        **options: for U-Nets ``width`` and ``upsampling``, for timm and smp ``dropout``, for
            adares_unet all of these, ``kernel_size`` and ``activation``.

    Returns:
        A module that takes ``(N, C, H, W)`` images, uint8 or float in [0, 1], and gives
        ``Outputs(class_logits (N, K) or None, dense (N, D, H, W) or None)``.

    Raises:
        ModelError: an unknown name or option, or sizes that don't fit.
        DownloadError: the weights can't be fetched.

    Example:
        >>> network = create_model("vovunet_var", in_channels=3, num_classes=8, dense_channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        35931723
    """
    spec = find_model(name)
    if unknown := sorted(set(options) - spec.options):
        flag = f"--model.{unknown[0].replace('_', '-')} None"
        hint = closest(unknown[0], spec.options, f"unset it ({flag})")
        raise ModelError(f"{name} has no option '{unknown[0]}': {hint}")
    if pretrained and spec.licence is None:
        raise ModelError(
            f"{name} has no pretrained weights: leave --model.pretrained out, or choose a network "
            "with a licence of weights in 'medduet models'"
        )
    if dims not in KINDS or (pretrained and dims == 3):
        expected = "expected dims of 2, or of 3 without --model.pretrained (weights are for images)"
        raise ModelError(f"{expected}, given {dims}")
    heads = {"num_classes": num_classes, "dense_channels": dense_channels}
    sizes = {"in_channels": in_channels, **heads, "dims": dims}
    weights = {"pretrained": True} if pretrained else {}
    try:
        least = min(in_channels, options.get("width", 1), max(heads.values()))
        if least < 1 or min(heads.values()) < 0:
            raise ModelError(f"expected positive sizes and a head, given {sizes | options}")
        if ordinal and num_classes < 2:
            raise ModelError(f"expected several grades, given {num_classes} classes")
        scores = num_classes - ordinal
        network = spec.build(in_channels, scores, dense_channels, **options, **weights)
    except (TypeError, RuntimeError) as error:  # libraries raise these for sizes they don't take
        reason = str(error).strip().partition("\n")[0]  # torch adds a stack of its C++
        raise ModelError(f"{name} can't be built with {sizes | options}: {reason}") from error
    except OSError as error:
        raise DownloadError(
            f"the weights of {name} could not be fetched from the Hugging Face hub: {error}; "
            "connect, or give --model.weights FILE.safetensors"
        ) from error
    network.ordinal = ordinal
    network.arguments = {"name": name, **sizes, **options} | ({"ordinal": True} if ordinal else {})
    if dims == 3:
        from medduet.models.volumes import turn_into_3d  # slow to import

        turn_into_3d(network, flat_levels)
        network.arguments |= {"flat_levels": list(flat_levels)} if any(flat_levels) else {}
    else:
        guard_depthwise(network)
    return network


def model_cost(
    name: str, in_channels: int, num_classes: int, dense_channels: int, size: int, **options: Any
) -> Cost:
    """Return the cost of a network for one image of ``size x size`` pixels; nothing is computed."""
    sizes: dict[str, Any] = {"num_classes": num_classes, "dense_channels": dense_channels}
    with torch.device("meta"), NumbersOnCPU():
        network = create_model(name, in_channels=in_channels, **sizes, **options)
    check_takes(network, size, size)
    return network_cost(network, size, size)


def _timm_spec(name: str) -> ModelSpec:
    from medduet.models.encoders import TimmNetwork

    rest = name.removeprefix("timm:")
    stem = rest.partition(".")[0]
    if not timm.is_model(stem) or (stem != rest and rest not in timm.list_pretrained(f"{stem}.*")):
        raise _unknown(name, rest, _timm_names("timm:"))
    config = timm.get_pretrained_cfg(rest) if timm.models.is_model_pretrained(rest) else None
    return ModelSpec(
        partial(TimmNetwork, name=rest),
        "classifier of timm; with a dense head a U-Net decoder on its maps",
        PAPER_CLASSIFIERS.get(f"timm:{stem}", "The paper is named in timm's file of the network"),
        (config.license or "not recorded") if config else None,
    )


def _smp_spec(name: str) -> ModelSpec:
    import segmentation_models_pytorch as smp

    from medduet.models.encoders import SmpNetwork

    architecture, _, encoder = name.removeprefix("smp:").partition("/")
    decoders, encoders = smp.MODEL_ARCHITECTURES_MAPPING, smp.encoders.encoders
    if architecture not in decoders:
        raise _unknown(name, architecture, {key: f"smp:{key}/ENCODER" for key in decoders})
    if encoder in encoders:
        licence = "not recorded" if encoders[encoder]["pretrained_settings"] else None
    elif encoder.startswith("tu-") and timm.is_model(encoder[3:].partition(".")[0]):
        licence = find_model(f"timm:{encoder[3:]}").licence
    else:
        names = [*encoders, *_timm_names("tu-").values()]
        raise _unknown(name, encoder, {key: f"smp:{architecture}/{key}" for key in names})
    title = decoders[architecture].__name__
    return ModelSpec(
        partial(SmpNetwork, architecture=architecture, encoder=encoder),
        f"{title} of segmentation-models-pytorch",
        f"Papers: documentation of {title} and the encoder there",
        licence,
    )
