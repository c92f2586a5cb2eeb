"""Networks whose encoder is timm's or segmentation-models-pytorch's."""

import inspect
from functools import lru_cache
from typing import Any

import requests
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from medduet.errors import ModelError
from medduet.models.base import DuetNetwork, Normalize, freeze_unused
from medduet.types import Outputs

FINEST_CHANNELS = 16
"""Of the U-Net decoder at the full size, twice as many in each level below, as smp's defaults."""
Constants = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Constants = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class TimmNetwork(DuetNetwork):
    """A timm classifier with its own head, and a U-Net decoder on the maps of its stages.

    Where a stage is missing (networks that start with a stride of 4), the decoder goes on without a
    skip. Transformers whose blocks all have one resolution give four maps from equal distances in
    their depth, the shallower ones enlarged, as UNETR (arXiv:2103.10504) does.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dense_channels: int,
        *,
        name: str,
        pretrained: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            name,
            pretrained=pretrained,
            in_chans=in_channels,
            num_classes=num_classes,
            drop_rate=dropout,
            **_any_size(name),
        )
        self.has_class_head = num_classes > 0
        self.normalize = Normalize(in_channels)
        config = self.encoder.pretrained_cfg
        self.pretrained_normalization = config["mean"], config["std"]
        if pretrained:
            self.normalize.set(*self.pretrained_normalization)
        strides = [int(info["reduction"]) for info in self.encoder.feature_info]
        self.equal_resolution = len(set(strides)) == 1
        patch_size = getattr(getattr(self.encoder, "patch_embed", None), "patch_size", None)
        self.multiple = int(to_2tuple(patch_size)[0]) if patch_size else 1
        self.min_padded = max(strides)
        self.encoder_modules = [self.encoder]  # its classifier is not in `encoder_parameters`
        self.decoder_modules = []
        if dense_channels:
            self._build_decoder(name, dense_channels)
        freeze_unused(self, config["input_size"][-1])
        if not (pretrained and config["num_classes"] == num_classes):
            _start_quiet(self.classifier)

    def _build_decoder(self, name: str, dense_channels: int) -> None:
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        info = self.encoder.feature_info
        if not hasattr(self.encoder, "forward_intermediates"):
            raise ModelError(f"timm:{name} has no maps for a decoder: use smp:unet/tu-{name}")
        if self.equal_resolution:
            levels = {2 ** (part + 1): len(info) * (part + 1) // 4 - 1 for part in range(4)}
        else:
            levels = {int(item["reduction"]): i for i, item in enumerate(info)}
            levels.pop(1, None)  # the decoder ends at the full size and takes no skip there
        self.indices = list(levels.values())
        channels = {stride: int(info[i]["num_chs"]) for stride, i in levels.items()}
        self.strides = [2**level for level in range(1, max(channels).bit_length())]
        if set(channels) - set(self.strides):
            raise ModelError(
                f"expected strides that are powers of 2, given {list(channels)} of timm:{name}: "
                "train without a dense task (--tasks classify)"
            )
        self.skip_strides = list(channels)
        depth = len(self.strides)
        self.decoder = UnetDecoder(
            encoder_channels=[0, *(channels.get(stride, 0) for stride in self.strides)],
            decoder_channels=[FINEST_CHANNELS * 2**level for level in reversed(range(depth))],
            n_blocks=depth,
        )
        self.dense_head = nn.Conv2d(FINEST_CHANNELS, dense_channels, 3, padding=1)
        self.decoder_modules = [self.decoder, self.dense_head]

    @property
    def classifier(self) -> nn.Module | None:
        """The last layer of timm's head, unless it has several."""
        last = self.encoder.get_classifier()
        return last if self.has_class_head and isinstance(last, nn.Module) else None

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of timm's network but for its classifier."""
        classifier = self.encoder.get_classifier()
        heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
        excluded = {p for head in heads if head is not None for p in head.parameters()}
        return [p for p in self.encoder.parameters() if p not in excluded]

    def forward(self, image: Tensor) -> Outputs:
        """Return the scores of both heads."""
        if not self.decoder_modules:
            return Outputs(self._classify(image), None)
        x = self._padded(image)
        deep, maps = self.encoder.forward_intermediates(x, indices=self.indices)
        class_logits = self.encoder.forward_head(deep) if self.has_class_head else None
        dense = self.dense_head(self.decoder(self._levels(x, maps)))
        return Outputs(class_logits, dense[(..., *map(slice, image.shape[2:]))])

    def _padded(self, image: Tensor) -> Tensor:
        return pad_to(self.normalize(image), self.multiple, self.min_padded)

    def _classify(self, image: Tensor) -> Tensor | None:
        return self.encoder(self._padded(image)) if self.has_class_head else None

    def _levels(self, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Return one map per stride, the image first; empty where there is no skip."""
        if self.equal_resolution:
            height, width = maps[-1].shape[-2:]
            for part in range(3):
                size = height * 2 ** (3 - part), width * 2 ** (3 - part)
                maps[part] = F.interpolate(maps[part], size=size, mode="bilinear")
        levels, skips = [x], dict(zip(self.skip_strides, maps, strict=True))
        for stride in self.strides:
            sides = [round_up(side, stride) // stride for side in x.shape[2:]]
            levels.append(skips.get(stride, x.new_zeros(x.shape[0], 0, *sides)))
        return levels


class SmpNetwork(DuetNetwork):
    """A network of segmentation-models-pytorch with its class head."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dense_channels: int,
        *,
        architecture: str,
        encoder: str,
        pretrained: bool = False,
        dropout: float = 0.0,
    ) -> None:
        import segmentation_models_pytorch as smp

        super().__init__()
        weights, self.pretrained_normalization = _smp_pretrained(encoder, pretrained)
        self.model = smp.MODEL_ARCHITECTURES_MAPPING[architecture](
            encoder_name=encoder,
            encoder_weights=weights,
            in_channels=in_channels,
            classes=max(1, dense_channels),
            aux_params={"classes": num_classes, "dropout": dropout} if num_classes else None,
        )
        self.encoder_modules = [self.model.encoder]
        self.decoder_modules = [self.model.decoder, self.model.segmentation_head]
        if not dense_channels:
            del self.model.decoder, self.model.segmentation_head
            self.decoder_modules = []
        _start_quiet(self.classifier)
        self.multiple = int(self.model.encoder.output_stride)
        self.normalize = Normalize(in_channels)
        if pretrained:
            self.normalize.set(*self.pretrained_normalization)
        freeze_unused(self, 224)

    @property
    def classifier(self) -> nn.Module | None:
        """The linear layer on the deepest map, averaged."""
        layers = self.model.classification_head
        return None if layers is None else next(x for x in layers if isinstance(x, nn.Linear))

    def forward(self, image: Tensor) -> Outputs:
        """Return the scores of both heads."""
        if not self.decoder_modules:
            return Outputs(self._classify(image), None)
        outputs = self.model(pad_to(self.normalize(image), self.multiple))
        dense, class_logits = outputs if isinstance(outputs, tuple) else (outputs, None)
        return Outputs(class_logits, dense[(..., *map(slice, image.shape[2:]))])

    def _classify(self, image: Tensor) -> Tensor | None:
        if self.model.classification_head is None:
            return None
        features = self.model.encoder(pad_to(self.normalize(image), self.multiple))
        deepest = features[0][-1] if isinstance(features, tuple) else features[-1]
        scores: Tensor = self.model.classification_head(deepest)
        return scores


def _start_quiet(classifier: nn.Module | None) -> None:
    """Let all classes start about as likely: some of timm's heads start with scores of 10."""
    if isinstance(classifier, nn.Linear | nn.Conv2d):
        nn.init.normal_(classifier.weight, std=0.1 / classifier.weight[0].numel() ** 0.5)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)


def pad_to(x: Tensor, multiple: int, at_least: int = 1) -> Tensor:
    """Pad ``(N, C, ...)`` with zeros at the end of each side."""
    # torch.export follows sizes through sym_max, not through max.
    sides: list[Any] = [torch.sym_max(side, at_least) for side in x.shape[2:]]
    sides = [round_up(side, multiple) for side in sides]
    # An exported network is for every size, whether the one that it is made with fits or not.
    if not torch.compiler.is_exporting() and sides == list(x.shape[2:]):
        return x
    missing = [new - old for new, old in zip(sides, x.shape[2:], strict=True)]
    return F.pad(x, [rows for last in reversed(missing) for rows in (0, last)])


def round_up(side: int, multiple: int) -> int:
    """Return the next multiple; ONNX rounds quotients of negative numbers otherwise than Python."""
    return (side + multiple - 1) // multiple * multiple


def weights_at_hand(name: str) -> bool:
    """Return whether the pretrained weights of ``timm:NAME`` are in the hub's cache, or reachable.

    Asked with a short patience: timm itself would try for a minute where there is no network.
    """
    repository = timm.get_pretrained_cfg(name.removeprefix("timm:")).hf_hub_id
    if isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
        return True
    address = f"{constants.ENDPOINT}/{repository}/resolve/main/model.safetensors"
    try:
        return not constants.HF_HUB_OFFLINE and requests.head(address, timeout=5).ok
    except requests.RequestException:
        return False


@lru_cache
def _any_size(name: str) -> dict[str, Any]:
    """Return what makes a timm network take images of any size, if it has such an option."""
    with torch.device("meta"):
        kind = type(timm.create_model(name))
    options = {"dynamic_img_size": True, "strict_img_size": False}
    parameters = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in options.items() if key in parameters}


def _smp_pretrained(encoder: str, fetch: bool) -> tuple[str | bool | None, Constants]:
    """Return the name of the weights to fetch, and the mean and deviation that they expect.

    Those stand beside the weights on the hub; where these are not fetched, ImageNet's are taken.
    """
    from segmentation_models_pytorch.encoders import encoders, get_preprocessing_params

    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return fetch or None, (config.mean, config.std) if config else IMAGENET
    if not fetch:
        return None, IMAGENET
    names: list[str] = list(encoders[encoder]["pretrained_settings"])
    weights = "imagenet" if "imagenet" in names else names[0]
    settings = get_preprocessing_params(encoder, weights)
    scale = max(settings["input_range"] or (0, 1))
    mean, std = settings["mean"] or (0.0,), settings["std"] or (1.0,)
    return weights, (tuple(value / scale for value in mean), tuple(value / scale for value in std))
