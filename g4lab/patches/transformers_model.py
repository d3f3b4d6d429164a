"""The patches for transformers: put on a Gemma-4 model's own modules, and taken off again without a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.patches import transformers_attention, transformers_experts, transformers_layer, transformers_router

if TYPE_CHECKING:
    import torch

NAMES = ("router", "router_norm", "qkv_norm", "residual_norm", "extend_attention", "fused_moe")
_KEPT = "_g4lab_forward"  # what the module's own __dict__ held as forward before, if anything


def apply(model: torch.nn.Module, patches: str = "router") -> list[str]:
    """Patch `model` (a transformers Gemma-4) in place; returns the names of the patched modules, in the model's order.

    patches: some of NAMES, comma-separated, or "all" of those that the model has modules for. Raises BadInput for
    another name, for a model that a named patch finds nothing in, and for one already patched; Unavailable on a CPU
    outside of Triton's interpreter.
    """
    names = chosen(patches)
    if patched(model):
        raise bad("model", type(model).__name__, "an unpatched model (g4lab.patches.remove restores it)")
    found = {name: _kind(name) for name in names}
    missing = [name for name, kind in found.items() if not any(isinstance(m, kind) for m in model.modules())]
    if missing and (patches != "all" or len(missing) == len(names)):
        lacks = "router modules" if missing[0].startswith("router") else "such modules"
        raise bad("model", type(model).__name__, f"a Gemma-4 that {missing[0]} has work in (this one has no {lacks})")
    if next(model.parameters()).device.type == "cpu" and not env.interpreting():
        raise Unavailable("patches on a CPU run in Triton's interpreter: set TRITON_INTERPRET=1 before importing torch")
    modules = []
    for path, module in model.named_modules():
        steps = frozenset(name for name, kind in found.items() if isinstance(module, kind))
        if "extend_attention" in steps:
            transformers_attention.switch_on(module)
        elif steps:
            vars(module)[_KEPT] = vars(module).get("forward")
            module.forward = _forward(module, steps)
        if steps:
            modules.append(path)
    return modules


def remove(model: torch.nn.Module) -> list[str]:
    """Restore what `apply` replaced; returns the names of the restored modules, none where nothing was patched."""
    modules = dict(patched(model))
    for module in modules.values():
        if transformers_attention.is_on(module):
            transformers_attention.switch_off(module)
            continue
        before = vars(module).pop(_KEPT)
        if before is None:
            del module.forward
        else:
            module.forward = before
    return list(modules)


def chosen(patches: str) -> tuple[str, ...]:
    """The names in `patches` ("none", "all", or some of NAMES, comma-separated), in NAMES' order. Raises BadInput."""
    if patches in ("none", "all"):
        return () if patches == "none" else NAMES
    words = [word.strip() for word in patches.split(",")]
    for word in words:
        if word not in NAMES:
            raise bad("patches", word, "some of the patches for transformers: " + ", ".join(NAMES))
    return tuple(name for name in NAMES if name in words)


def patched(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Name and module of everything in `model` that `apply` has changed."""
    modules = model.named_modules()
    return [(path, each) for path, each in modules if _KEPT in vars(each) or transformers_attention.is_on(each)]


def _kind(name: str) -> type:
    """The class of modules that patch `name` changes."""
    from transformers.models.gemma4 import modeling_gemma4 as gemma4

    kinds = {
        "qkv_norm": gemma4.Gemma4TextAttention,
        "residual_norm": gemma4.Gemma4TextDecoderLayer,
        "fused_moe": gemma4.Gemma4TextExperts,
        "extend_attention": gemma4.Gemma4TextModel,  # its config, which its layers share, names the attention
    }
    return kinds.get(name, gemma4.Gemma4TextRouter)


def _forward(module, steps: frozenset[str]) -> Callable:
    """The forward of `module` with the patches `steps`."""
    if "qkv_norm" in steps:
        return functools.partial(transformers_layer.attend, module)
    if "residual_norm" in steps:
        return functools.partial(transformers_layer.decode_layer, module)
    if "fused_moe" in steps:
        return functools.partial(transformers_experts.run, module)
    return functools.partial(transformers_router.forward, module, steps)
