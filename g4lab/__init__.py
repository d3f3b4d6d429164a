"""g4lab: profile, fuse, prove and serve Google's Gemma-4 on SGLang, from a notebook.

Importing this package is cheap: torch, triton, transformers and sglang load only when a room that needs them does.
"""

__version__ = "0.1.0"
