"""What a network looks like from outside: the maps of its stages, and the layers of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from medduet.errors import ModelError
from medduet.models.base import DuetNetwork, check_takes, on_meta
from medduet.models.encoders import SmpNetwork, TimmNetwork
from medduet.models.unet import Sharpen, UNet


class Map(NamedTuple):
    """A map between stages: channels, height and width in pixels."""

    channels: int
    height: int
    width: int


class Anatomy(NamedTuple):
    """The stages of a network with both heads.

    Attributes:
        image: what comes in.
        down: the maps of the encoder, the largest first.
        up: the maps of the decoder, the smallest first.
        classes: number of class scores.
        dense: the dense output.
        skip: what a skip passes through, in words; empty for nothing.
        block: which block `layers` belong to.
        layers: of one block, in the order in which they run; branches one after the other.
    """

    image: Map
    down: list[Map]
    up: list[Map]
    classes: int
    dense: Map
    skip: str
    block: str
    layers: list[str]


def anatomy(network: DuetNetwork, height: int, width: int) -> Anatomy:
    """Return the stages of `network` for images of ``height x width`` pixels; computes nothing.

    Raises:
        ModelError: the network does not have both heads, or does not take such images.

    Example:
        >>> from medduet import create_model
        >>> network = create_model("unet", in_channels=1, num_classes=2, dense_channels=1, width=4)
        >>> found = anatomy(network, 32, 32)
        >>> found.down[1], found.layers[0]
        (Map(channels=8, height=16, width=16), '3×3 conv 8 → 16, norm, ReLU')
    """
    check_takes(network, height, width)
    watched: dict[str, list[Map]] = {}
    layers: list[str] = []
    hooks = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            watched.setdefault(name, []).append(_shape(output))

        return hook

    def keep_features(module: nn.Module, given: tuple[list[Tensor], ...]) -> None:
        watched["down"] = [_shape(each) for each in given[0][1:] if each.shape[1]]

    decoder, name, block = _parts(network)
    if isinstance(network, UNet):
        for stage in (network.stem, *network.down):
            hooks.append(stage.register_forward_hook(keep("down")))
    else:
        hooks.append(decoder.register_forward_pre_hook(keep_features))
    stages = network.up if isinstance(network, UNet) else getattr(decoder, "blocks", [decoder])
    for stage in stages:
        hooks.append(stage.register_forward_hook(keep("up")))
    for module in _leaves(block):
        hooks.append(module.register_forward_hook(_describer(layers)))
    image = torch.zeros(1, network.normalize.channels, height, width, device="meta")
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            outputs = torch.func.functional_call(network, on_meta(network), (image,))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if outputs.class_logits is None or outputs.dense is None:
        raise ModelError(
            "the figure of a network needs both heads: give num_classes and dense_channels"
        )
    sharpens = any(isinstance(module, Sharpen) for module in network.modules())
    return Anatomy(
        image=_shape(image),
        down=watched["down"],
        up=watched["up"],
        classes=outputs.class_logits.shape[1],
        dense=_shape(outputs.dense),
        skip="sharpened" if sharpens else "",
        block=name,
        layers=_collapse(layers),
    )


def _parts(network: DuetNetwork) -> tuple[nn.Module, str, nn.Module]:
    """Return the decoder, and which block's layers are told."""
    if isinstance(network, UNet):
        down: Any = network.down[1]
        return network.up, "third level", down[1]
    decoder: Any = None
    if isinstance(network, TimmNetwork):
        decoder = network.decoder
    elif isinstance(network, SmpNetwork) and network.has_dense_head:
        decoder = network.model.decoder
    if decoder is None:
        raise ModelError("the figure of a network needs both heads: give dense_channels")
    blocks = getattr(decoder, "blocks", None)
    if isinstance(blocks, nn.ModuleList):
        return decoder, "decoder, deepest level", blocks[0]
    return decoder, "decoder", decoder


def _shape(value: Any) -> Map:
    return Map(*value.shape[-3:])


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Give the layers; timm's norms, which hold their activation, count as one."""
    if isinstance(module, nn.BatchNorm2d) or not list(module.children()):
        yield module
        return
    for child in module.children():
        yield from _leaves(child)


def _describer(layers: list[str]) -> Callable[..., None]:
    """Return a hook that appends what a layer is; norms and activations join what came before."""

    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            kind = "depthwise conv" if module.groups > 1 else "conv"
            stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
            channels = f"{module.in_channels} → {module.out_channels}"
            layers.append(f"{rows}×{columns} {kind}{stride} {channels}")
        elif isinstance(module, nn.Dropout | nn.Dropout2d):
            if module.p:
                layers.append(f"dropout {module.p:g}")
        elif isinstance(module, nn.Identity | DropPath):
            pass
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            activation = getattr(module, "act", None)
            named = activation is not None and not isinstance(activation, nn.Identity)
            _join(layers, f"norm, {type(activation).__name__}" if named else "norm")
        elif not list(module.parameters()) and "Pool" not in type(module).__name__:
            _join(layers, type(module).__name__)
        else:
            layers.append(type(module).__name__)

    return hook


def _join(layers: list[str], what: str) -> None:
    if layers:
        layers[-1] += f", {what}"
    else:
        layers.append(what)


def _collapse(layers: list[str]) -> list[str]:
    """Write what repeats once, with how often.

    Example:
        >>> _collapse(["a", "b", "a", "b", "c"])
        ['2 times:', '   a', '   b', 'c']
        >>> _collapse(["a", "a", "a"])
        ['a  ×3']
    """
    told: list[str] = []
    start = 0
    while start < len(layers):
        best, length = 1, 1
        for period in range(1, 9):
            unit, times = layers[start : start + period], 1
            while layers[start + times * period : start + (times + 1) * period] == unit:
                times += 1
            if len(unit) == period and times > 1 and times * period > best * length:
                best, length = times, period
        unit = layers[start : start + length]
        if best == 1:
            told += unit
        elif length == 1:
            told.append(f"{unit[0]}  ×{best}")
        else:
            told += [f"{best} times:", *(f"   {layer}" for layer in unit)]
        start += best * length
    return told
