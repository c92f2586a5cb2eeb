"""What a network costs: parameters and multiply-accumulate operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from medduet.models.registry import create_model


class Cost(NamedTuple):
    """The cost of a network.

    Attributes:
        parameters: number of trainable parameters.
        gmacs: 10^9 multiply-accumulate operations of the forward pass for one image, in
            convolutions, matrix products and attention (torch's counter).
    """

    parameters: int
    gmacs: float


def model_cost(
    name: str, in_channels: int, num_classes: int, dense_channels: int, size: int, **options: object
) -> Cost:
    """Return the cost of a network for one image of ``size x size`` pixels; nothing is computed.

    Example:
        >>> cost = model_cost("vovunet_var", 3, 8, 3, size=224)
        >>> cost.parameters, round(cost.gmacs, 2)
        (35931723, 42.23)
    """
    with torch.device("meta"):
        network = create_model(
            name,
            in_channels=in_channels,
            num_classes=num_classes,
            dense_channels=dense_channels,
            **options,
        ).eval()
        image = torch.zeros(1, in_channels, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Cost(parameters, counter.get_total_flops() / 2e9)
