"""Traces of real profilers as tables: where the time of prefill and decode goes, and what a patch changed in it."""

import importlib

_HOME = {
    "Problem": "model",
    "Trace": "model",
    "breakdown": "intervals",
    "coverage": "tables",
    "diff": "comparison",
    "expect": "liveness",
    "kernel_table": "tables",
    "Result": "result",
    "by_phase": "tables",
    "launch_gaps": "intervals",
    "launches_per_token": "tables",
    "load": "reading",
    "per_step": "tables",
    "top": "tables",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
