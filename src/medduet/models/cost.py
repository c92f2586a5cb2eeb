"""What a network costs: parameters and multiply-accumulate operations."""

from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from medduet.models.base import DuetNetwork, NumbersOnCPU, check_takes, trace
from medduet.models.registry import create_model


class Cost(NamedTuple):
    """Trainable parameters and 10^9 multiply-accumulates, as it is and without decoder."""

    parameters: int
    gmacs: float
    parameters_alone: int
    gmacs_alone: float


def model_cost(
    name: str, in_channels: int, num_classes: int, dense_channels: int, size: int, **options: Any
) -> Cost:
    """Return the cost of a network for one image of ``size x size`` pixels; nothing is computed."""
    sizes: dict[str, Any] = {"num_classes": num_classes, "dense_channels": dense_channels}
    with torch.device("meta"), NumbersOnCPU():
        network = create_model(name, in_channels=in_channels, **sizes, **options)
    check_takes(network, size, size)
    return network_cost(network, size, size)


def network_cost(network: DuetNetwork, height: int, width: int) -> Cost:
    """Return the cost of `network` for one image of ``height x width`` pixels, see `model_cost`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trace(network, 1, height, width)
    decoder = [id(module) for module in network.decoder_modules]
    names = [name for name, module in network.named_modules() if id(module) in decoder]
    counts, prefix = counter.get_flop_counts(), type(network).__name__
    flops = counter.get_total_flops()
    spent = sum(sum(counts[f"{prefix}.{name}"].values()) for name in names)
    dense = {id(p) for module in network.decoder_modules for p in module.parameters()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    alone = sum(parameter.numel() for parameter in trained if id(parameter) not in dense)
    total = sum(parameter.numel() for parameter in trained)
    return Cost(total, flops / 2e9, alone, (flops - spent) / 2e9)
