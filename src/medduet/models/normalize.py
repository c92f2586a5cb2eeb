"""Normalisation as a part of the network, so that weights can't be served with another one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medduet.errors import ModelError


class Normalize(nn.Module):
    """Scale uint8 images to [0, 1], then subtract the mean and divide by the standard deviation.

    Both are 0.5 in every channel unless `set` says otherwise.

    Args:
        channels: number of channels C.

    Shapes:
        Takes ``(N, C, H, W)``, uint8 or float in [0, 1]; gives the same shape as float.

    Raises:
        ModelError: the image has another number of channels or dimensions.

    Example:
        >>> import torch
        >>> normalize = Normalize(1)
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)).flatten()
        tensor([-1.,  1.])
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
        """Take over the constants with which weights were made.

        Args:
            mean: of each channel in [0, 1]; where the number of channels is another one, their
                mean is taken for all.
            std: likewise.
        """
        for buffer, values in ((self.mean, mean), (self.std, std)):
            fits = len(values) == self.channels
            value = torch.tensor(values if fits else [sum(values) / len(values)])
            buffer.copy_(value.reshape(1, -1, 1, 1).expand_as(buffer))

    def invert(self, normalized: Tensor) -> Tensor:
        """Return normalised images ``(N, C, H, W)`` as they were, in [0, 1].

        Example:
            >>> Normalize(1).invert(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)).flatten()
            tensor([0., 1.])
        """
        return normalized * self.std + self.mean

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised images, see `Normalize`."""
        if image.ndim != 4 or image.shape[1] != self.channels:
            raise ModelError(
                f"expected images of shape (N, {self.channels}, H, W), but got "
                f"{tuple(image.shape)}: the network was built for {self.channels} channel(s)"
            )
        image = self.arranged(image)
        if image.dtype != torch.uint8:
            return (image - self.mean) / self.std
        # In place, since new memory costs a CPU more than the arithmetic.
        image = image.to(self.mean.dtype).div_(255)
        rows, mean, std = image, self.mean, self.std
        beside = self.channels > 1 and image.is_contiguous(memory_format=torch.channels_last)
        if beside and image.is_cpu:
            # The values of a pixel lie side by side: torch would go in steps of C, not of a row.
            rows = image.permute(0, 2, 3, 1).flatten(2)
            mean, std = (x.flatten().repeat(image.shape[3]) for x in (mean, std))
        rows.sub_(mean).div_(std)
        return image

    def arranged(self, image: Tensor) -> Tensor:
        """Return images ``(N, C, H, W)`` in the memory format that was set."""
        if self.memory_format is None:
            return image
        _, channels, height, width = image.shape
        if channels == 1:
            # Both formats are the same bytes, and torch goes by the strides.
            strides = {torch.channels_last: (height * width, 1, width, 1)}.get(
                self.memory_format, (height * width, height * width, width, 1)
            )
            return image.contiguous().as_strided(image.shape, strides)
        return image.contiguous(memory_format=self.memory_format)
