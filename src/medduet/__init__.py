"""MedDuet trains, evaluates and ships networks that say what a medical image shows and where.

Names are loaded when they are first used, so ``import medduet`` is fast.

Example:
    >>> import medduet, torch
    >>> network = medduet.create_model("vovunet_var", in_channels=1, num_classes=2, width=4)
    >>> network(torch.zeros(5, 1, 28, 28)).class_logits.shape
    torch.Size([5, 2])
"""

import lazy_loader as lazy

from medduet._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
