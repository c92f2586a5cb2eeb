"""Networks: blocks, the U-Net that takes a block, encoders of libraries, and the registry."""

from medduet.models.base import DuetNetwork, Normalize
from medduet.models.ensemble import Ensemble
from medduet.models.registry import MODELS, ModelSpec, create_model, find_model, model_names
from medduet.models.unet import UNet
from medduet.models.weights import WeightsReport, load_weights, save_network

__all__ = ["MODELS", "DuetNetwork", "Ensemble", "ModelSpec", "Normalize", "UNet", "WeightsReport"]
__all__ += ["create_model", "find_model", "load_weights", "model_names", "save_network"]
