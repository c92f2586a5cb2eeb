"""What all networks have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from medduet.models.normalize import Normalize
from medduet.types import Outputs


class DuetNetwork(nn.Module):
    """A network with a class head, a dense head, or both.

    Attributes:
        normalize: takes the images as they are given to the network, gives what it computes on;
            the reconstruction is judged against it.
    """

    normalize: Normalize
    __call__: Callable[[Tensor], Outputs]
