"""Patch `router` for transformers: the same one-launch routing in every Gemma-4 router module of a model.

transformers takes a softmax over all E logits, the top k of those probabilities, and divides by their sum; route takes
the softmax of the top k logits. In real numbers both are the same. In floating point they differ by rounding, and in
bf16 and fp16 logits that differ may share a rounded probability: transformers then breaks that tie by id, route by
logit. So in fp32 tokens agree, and in bf16 the patched model routes as SGLang does, not bit for bit as transformers.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.patches.counting import count
from g4lab.patches.router import rounding

if TYPE_CHECKING:
    import torch

_KEPT = "_g4lab_forward"  # what the module's own __dict__ held as forward before, if anything


def apply(model: torch.nn.Module, patches: str = "router") -> list[str]:
    """Patch `model` (a transformers Gemma-4) in place; returns the names of the patched modules.

    patches: "router", the only patch that transformers has. Raises BadInput for another name, for a model without
    routers and for one already patched; Unavailable on a CPU outside of Triton's interpreter.
    """
    if patches != "router":
        raise bad("patches", patches, "router, the only patch for transformers")
    found = routers(model)
    if not found:
        raise bad("model", type(model).__name__, "a Gemma-4 with experts (this one has no router modules)")
    if any(_KEPT in vars(router) for router in found.values()):
        raise bad("model", type(model).__name__, "an unpatched model (g4lab.patches.remove restores it)")
    if next(model.parameters()).device.type == "cpu" and not env.interpreting():
        raise Unavailable("router on a CPU runs in Triton's interpreter: set TRITON_INTERPRET=1 before importing torch")
    for router in found.values():
        vars(router)[_KEPT] = vars(router).get("forward")
        router.forward = types.MethodType(_forward, router)
    return list(found)


def remove(model: torch.nn.Module) -> list[str]:
    """Restore what `apply` replaced; returns the names of the restored modules, none where nothing was patched."""
    patched = {name: router for name, router in routers(model).items() if _KEPT in vars(router)}
    for router in patched.values():
        before = vars(router).pop(_KEPT)
        if before is None:
            del router.forward
        else:
            router.forward = before
    return list(patched)


def routers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The router modules of a transformers Gemma-4 by name, in the layers' order; empty for one without experts."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

    return {name: module for name, module in model.named_modules() if isinstance(module, Gemma4TextRouter)}


def _forward(router, hidden_states):
    """transformers' Gemma4TextRouter.forward: [T, H] -> probabilities [T, E], weights [T, K], ids int64 [T, K]."""
    from g4lab.kernels.router import route

    count("router")
    scaled = router.norm(hidden_states) * router.scale * router.scalar_root_size
    logits = router.proj(scaled)
    weights, ids = route(logits, router.per_expert_scale, router.config.top_k_experts, rounding=rounding())
    return logits.softmax(-1), weights.to(logits.dtype), ids.long()
