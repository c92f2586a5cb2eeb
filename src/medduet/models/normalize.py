"""Normalisation as a part of the network, so that weights can't be served with another one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medduet.errors import ModelError


class Normalize(nn.Module):
    """Scale uint8 images to [0, 1], then subtract the mean and divide by the standard deviation.

    Takes ``(N, C, H, W)``, uint8 or float in [0, 1]; gives the same shape as float. Both are 0.5
    unless `set` says otherwise.
    """

    mean: Tensor
    std: Tensor
    memory_format: torch.memory_format | None = None
    """In which the network computes: convolutions go on as their input is. ``None``: as given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.5))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take over the mean and deviation of each channel, or their mean for another number."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            fits = len(values) == self.channels
            value = torch.tensor(values if fits else [sum(values) / len(values)])
            buffer.copy_(value.reshape(1, -1, 1, 1).expand_as(buffer))

    def invert(self, normalized: Tensor) -> Tensor:
        """Return normalised images ``(N, C, H, W)`` as they were, in [0, 1]."""
        return normalized * self.std + self.mean

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised images."""
        if image.ndim != 4 or image.shape[1] != self.channels:
            raise ModelError(
                f"expected images of shape (N, {self.channels}, H, W), but got "
                f"{tuple(image.shape)}: the network was built for {self.channels} channel(s)"
            )
        image = self.arranged(image)
        if image.dtype != torch.uint8:
            return (image - self.mean) / self.std
        # In place, since new memory costs a CPU more than the arithmetic.
        return image.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)

    def arranged(self, image: Tensor) -> Tensor:
        """Return images ``(N, C, H, W)`` in the memory format that was set."""
        if self.memory_format is None:
            return image
        _, channels, height, width = image.shape
        if channels == 1:  # both formats are the same bytes, and torch goes by the strides
            step = 1 if self.memory_format == torch.channels_last else height * width
            return image.contiguous().as_strided(image.shape, (height * width, step, width, 1))
        return image.contiguous(memory_format=self.memory_format)
