"""What can be switched on in an engine, by name: corrections, kernels and reports, each with a proof that it ran.

In SGLang through its plugin (G4LAB_PATCHES=...), in transformers through `apply` and `remove`.
"""

from g4lab.patches.catalogue import REGISTRY, parse
from g4lab.patches.counting import counters, notes, states
from g4lab.patches.liveness import alive_in
from g4lab.patches.registry import Hook, Patch
from g4lab.patches.sglang_targets import SUPPORTED_SGLANG, targets_report
from g4lab.patches.transformers_model import apply, remove

__all__ = [
    "REGISTRY",
    "SUPPORTED_SGLANG",
    "Hook",
    "Patch",
    "alive_in",
    "apply",
    "counters",
    "notes",
    "parse",
    "remove",
    "states",
    "targets_report",
]
