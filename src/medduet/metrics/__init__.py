"""Pure functions from truth and prediction to numbers, with intervals.

The names below are loaded when they are first used: networks that run without torch need some.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
