"""What all networks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from medduet.data.patches import view
from medduet.errors import ModelError
from medduet.types import KINDS, Outputs

_WINDOW_PIXELS = 1 << 19  # of windows that are computed together


class Normalize(nn.Module):
    """Scale uint8 images to [0, 1], then subtract the mean and divide by the standard deviation.

    Takes ``(N, C, H, W)``, or of volumes ``(N, C, D, H, W)``, uint8 or float in [0, 1]; gives the
    same shape as float. Mean and deviation are 0.5 until `set` is called.
    """

    mean: Tensor
    std: Tensor
    memory_format: torch.memory_format | None = None
    """That of the network's feature maps, which follow their input; ``None`` leaves it as it is."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.channels, self.dims = channels, dims
        self.register_buffer("mean", torch.full((1, channels, *[1] * dims), 0.5))
        self.register_buffer("std", torch.full((1, channels, *[1] * dims), 0.5))

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set mean and deviation per channel; their mean, if the number of channels differs."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            fits = len(values) == self.channels
            value = torch.tensor(values if fits else [sum(values) / len(values)])
            buffer.copy_(value.reshape(1, -1, *buffer.shape[2:]))

    def invert(self, normalized: Tensor) -> Tensor:
        """Return normalised images ``(N, C, H, W)`` as they were, in [0, 1]."""
        return normalized * self.std + self.mean

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised images."""
        if image.ndim != 2 + self.dims or image.shape[1] != self.channels:
            kind, sides = KINDS[self.dims], ", ".join("DHW"[-self.dims :])
            raise ModelError(
                f"expected {kind} of shape (N, {self.channels}, {sides}), given "
                f"{tuple(image.shape)}: the network was built for {self.channels} channel(s)"
            )
        image = self.arranged(image)
        if image.dtype != torch.uint8:
            return (image - self.mean) / self.std
        # In place, since new memory costs a CPU more than the arithmetic.
        return image.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)

    def arranged(self, image: Tensor) -> Tensor:
        """Return images ``(N, C, ...)`` in the memory format that was set."""
        if self.memory_format is None:
            return image
        _, channels, *sides = image.shape
        if channels == 1:  # both formats are the same bytes, and torch goes by the strides
            pixels, *steps = (prod(sides[axis:]) for axis in range(len(sides) + 1))
            step = pixels if self.memory_format == torch.contiguous_format else 1
            return image.contiguous().as_strided(image.shape, (pixels, step, *steps))
        return image.contiguous(memory_format=self.memory_format)


class DuetNetwork(nn.Module, ABC):
    """A network with a class head, a dense head, or both.

    `normalize` makes its input from images in [0, 1] or bytes, which is also the target of the
    reconstruction; `arguments` are what `medduet.create_model` built it from, ready for JSON.
    """

    normalize: Normalize
    arguments: dict[str, Any]
    encoder_modules: list[nn.Module]  # what both heads share
    decoder_modules: list[nn.Module]  # what only the dense output needs
    min_side = 1
    patch: tuple[int, ...] | None = None
    """Sides of the patches it was trained on, as it predicts larger images, see `__call__`."""
    ordinal = False
    """Whether classes are grades, for which the class head has one score less: `grade_scores`."""
    _encoder_is_frozen = False

    @property
    def dims(self) -> int:
        """Spatial dimensions of what it takes: 2 for images, 3 for volumes."""
        return self.normalize.dims

    def __call__(self, image: Tensor) -> Outputs:
        """Return the outputs for ``(N, C, ...)`` images.

        Of images larger than the patches of the training, the class is that of a `view` of the
        whole, as in training, and the dense output is put together from windows, which overlap by
        half and count less towards their border (Gaussian, as in nnU-Net).
        """
        sides = tuple(image.shape[2:])
        if self.training or self.patch is None or (window := self.sides_at_once(sides)) == sides:
            class_logits, dense = super().__call__(image)
            if self.ordinal and class_logits is not None:
                class_logits = grade_scores(class_logits)
            return Outputs(class_logits, dense)
        from monai.inferers import sliding_window_inference  # slow to import

        dense = None
        if self.arguments["dense_channels"]:
            dense = sliding_window_inference(
                image.float() / 255 if image.dtype == torch.uint8 else image,
                window,
                max(1, _WINDOW_PIXELS // prod(window)),
                lambda part: super(DuetNetwork, self).__call__(part).dense,
                overlap=0.5,
                mode="gaussian",
            )
        # Last, for whoever records what the class head has seen.
        class_logits = self.classify(image) if self.arguments["num_classes"] else None
        return Outputs(class_logits, dense)

    def sides_at_once(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sides of what is computed at once of images of a `size`: a patch, or all."""
        return tuple(map(min, size, self.patch or size))

    def classify(self, image: Tensor) -> Tensor:
        """Return the `class_logits` ``(N, K)`` of ``(N, C, ...)`` images; no decoder is run."""
        if not self.training and self.patch is not None:
            image = view(image, self.sides_at_once(tuple(image.shape[2:])))
        class_logits = self._classify(image)
        if class_logits is None:
            raise ModelError(
                f"{self.arguments['name']} was built without a class head, so it can't classify: "
                "train it with --tasks classify segment"
            )
        return grade_scores(class_logits) if self.ordinal else class_logits

    @abstractmethod
    def _classify(self, image: Tensor) -> Tensor | None:
        """Return the class scores without running a decoder; ``None`` without class head."""

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that both heads share."""
        return [parameter for module in self.encoder_modules for parameter in module.parameters()]

    def freeze_encoder(self) -> None:
        """Keep the encoder as it is, batch normalisation too, while the rest is trained."""
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(False)
        self._encoder_is_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._encoder_is_frozen:
            for module in self.encoder_modules:
                module.eval()
        return self


def grade_scores(logits: Tensor) -> Tensor:
    """Return the log probabilities ``(N, K)`` of K ordered classes, of ``(N, K - 1)`` logits.

    Score k decides whether an image that is above grade k - 1 is above grade k. Their cross-entropy
    is CORN's loss (arXiv:2111.08851), each question weighed as often as it is asked.

    Example:
        >>> grade_scores(torch.zeros(1, 2)).exp()
        tensor([[0.5000, 0.2500, 0.2500]])
    """
    logits = logits.float()
    above = F.pad(F.logsigmoid(logits).cumsum(dim=1), (1, 0))
    return above + F.pad(F.logsigmoid(-logits), (0, 1))


class NumbersOnCPU(TorchFunctionMode):
    """Keeps rows of numbers off ``meta``, where libraries could not read the rates of blocks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}) | device)


def trace(
    network: DuetNetwork, n: int, *sides: int, training: bool = False
) -> tuple[Outputs, list[Tensor]]:
    """Run `network` on n images of torch's ``meta``; also return its parameters there."""
    state = {
        name: torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
        for name, value in [*network.named_parameters(), *network.named_buffers()]
    }
    image = torch.zeros(n, network.normalize.channels, *sides, device="meta")
    was_training = network.training
    network.train(training)
    try:
        outputs: Outputs = torch.func.functional_call(network, state, (image,))
    finally:
        network.train(was_training)
    return outputs, [state[name] for name, _ in network.named_parameters()]


def activation_bytes(network: DuetNetwork, *sides: int) -> int:
    """Return about how many bytes the maps of one image, or volume, take in a step of training."""
    sizes: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not [*module.children()]:
            sizes.append(output.numel() * 4)

    with register_module_forward_hook(count):
        trace(network, 2, *sides, training=True)
    return sum(sizes) // 2


def trains_on_one(network: DuetNetwork, *sides: int) -> bool:
    """Return whether batch normalisation is defined for one image: no map has a single pixel."""
    try:
        trace(network, 1, *sides, training=True)
    except ValueError:
        return False
    return True


def freeze_unused(network: DuetNetwork, side: int) -> None:
    """Turn the gradient off for parameters that no head reads.

    Libraries build some; they would hold up DistributedDataParallel and count as trainable.
    """
    with torch.inference_mode(False), torch.enable_grad():
        outputs, parameters = trace(network, 2, side, side)
        sums = [head.sum() for head in outputs if head is not None]
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            sums, parameters, allow_unused=True
        )
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def check_takes(network: DuetNetwork, *sides: int) -> None:
    """Raise `ModelError` if `network` does not take images, or volumes, of these sides."""
    try:
        with torch.no_grad():
            trace(network, 2, *sides)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(
            f"{network.arguments['name']} does not take {KINDS[len(sides)]} of "
            f"{' x '.join(map(str, sides))} pixels: {error}; give another --size or --model"
        ) from error


class Cost(NamedTuple):
    """Trainable parameters and 10^9 multiply-accumulates, as it is and without decoder."""

    parameters: int
    gmacs: float
    parameters_alone: int
    gmacs_alone: float


def network_cost(network: DuetNetwork, *sides: int) -> Cost:
    """Return the cost of `network` for one image, or volume, of these sides."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trace(network, 1, *sides)
    decoder, root = set(network.decoder_modules), type(network).__name__
    names = [f"{root}.{name}" for name, module in network.named_modules() if module in decoder]
    flops, counts = counter.get_total_flops(), counter.get_flop_counts()
    flops_alone = flops - sum(sum(counts[name].values()) for name in names)
    trained = {p for p in network.parameters() if p.requires_grad}
    alone = trained - {p for module in decoder for p in module.parameters()}
    total, total_alone = (sum(p.numel() for p in group) for group in (trained, alone))
    return Cost(total, flops / 2e9, total_alone, flops_alone / 2e9)
