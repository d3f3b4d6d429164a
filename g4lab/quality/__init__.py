"""Do the answers stay as good? Bit equivalence, drift and routing flips, and the statistics of accuracy comparisons."""

import importlib

_HOME = {
    "compare": "paired",
    "decompose": "noise",
    "mcnemar": "paired",
    "noise_floor": "noise",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
