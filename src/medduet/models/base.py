"""What all networks have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    if TYPE_CHECKING:  # torch says that a module returns Any

        def __call__(self, image: Tensor) -> Outputs:
            """Return what the heads say of ``(N, C, H, W)`` images."""
            ...
