"""Networks: blocks, the U-Net that takes a block, encoders of libraries, and the registry."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
