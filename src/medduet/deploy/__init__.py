"""From a trained network to its use."""

from medduet.deploy.bundle import ModelBundle, load, load_bundle, save_bundle

__all__ = ["ModelBundle", "load", "load_bundle", "save_bundle"]
