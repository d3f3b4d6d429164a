"""Gemma-4 as data: the four public checkpoints and their tiny twins, what they cost, and random weights on disk.

`spec` and the costs are plain Python; torch and transformers load only when a checkpoint or a configuration is made.
"""

from g4lab.gemma4.specs import NAMES, Layer, QKVMode, Spec, spec

__all__ = ["NAMES", "Layer", "QKVMode", "Spec", "spec"]
