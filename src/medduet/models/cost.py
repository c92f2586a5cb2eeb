"""What a network costs: parameters and multiply-accumulate operations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medduet.models.base import DuetNetwork, check_takes, on_meta
from medduet.models.registry import create_model


class Cost(NamedTuple):
    """The cost of a network.

    Attributes:
        parameters: number of trainable parameters.
        gmacs: 10^9 multiply-accumulate operations of the forward pass for one image, in
            convolutions, matrix products and attention (torch's counter).
        parameters_alone: the parameters without decoder and dense head.
        gmacs_alone: the operations without decoder and dense head.
    """

    parameters: int
    gmacs: float
    parameters_alone: int
    gmacs_alone: float


def model_cost(
    name: str, in_channels: int, num_classes: int, dense_channels: int, size: int, **options: Any
) -> Cost:
    """Return the cost of a network for one image of ``size x size`` pixels; nothing is computed.

    Raises:
        ModelError: the network does not take images of that size.

    Example:
        >>> cost = model_cost("vovunet_var", 3, 8, 3, size=224)
        >>> cost.parameters, round(cost.gmacs, 2), round(cost.gmacs_alone, 2)
        (35931723, 42.23, 15.09)
    """
    with torch.device("meta"):
        network = create_model(
            name,
            in_channels=in_channels,
            num_classes=num_classes,
            dense_channels=dense_channels,
            **options,
        )
    check_takes(network, size, size)
    return network_cost(network, size, size)


def network_cost(network: DuetNetwork, height: int, width: int) -> Cost:
    """Return the cost of `network` for one image of ``height x width`` pixels, see `model_cost`."""
    image = torch.zeros(1, network.normalize.channels, height, width, device="meta")
    was_training = network.training
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(network, on_meta(network), (image,))
    network.train(was_training)
    decoder = [id(module) for module in network.decoder_modules]
    names = [name for name, module in network.named_modules() if id(module) in decoder]
    counts, prefix = counter.get_flop_counts(), type(network).__name__
    flops = counter.get_total_flops()
    spent = sum(sum(counts[f"{prefix}.{name}"].values()) for name in names)
    parameters, extra = _trainable([network]), _trainable(network.decoder_modules)
    return Cost(parameters, flops / 2e9, parameters - extra, (flops - spent) / 2e9)


def _trainable(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
