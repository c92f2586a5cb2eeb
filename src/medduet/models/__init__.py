"""Networks: blocks, the U-Net that takes a block, and the registry."""

from medduet.models.base import DuetNetwork
from medduet.models.normalize import Normalize
from medduet.models.registry import MODELS, ModelSpec, create_model
from medduet.models.unet import MIN_SIDE, UNet

__all__ = ["MIN_SIDE", "MODELS", "DuetNetwork", "ModelSpec", "Normalize", "UNet", "create_model"]
