"""TokenAR: train, sample and evaluate. ``__init__.pyi`` lists the public names, which are loaded when they are used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
