"""Modules of a transformers Gemma-4, found by their class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def routers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The router modules by name, in the layers' order; empty for a model without experts."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

    return {name: module for name, module in model.named_modules() if isinstance(module, Gemma4TextRouter)}
