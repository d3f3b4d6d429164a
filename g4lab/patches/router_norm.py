"""Patch `router_norm`: the norm of SGLang's Gemma-4 router in one launch, with a named rounding.

The router's input is norm(x) * scale * H**-0.5. In real numbers the order does not matter; in bf16 it decides which
experts run (SGLang PR #26588 took a fused norm out again over it). $G4LAB_ROUTER_NORM_ROUNDING says who is followed:
"transformers" (default), "sglang" (0.5.21), "two_step" (SGLang before) or "fp32"; the kernel module defines them.

It reads the learned scale itself, so the fix router_scale has nothing to correct while this patch is on.
"""

from __future__ import annotations

from g4lab.patches.choices import Choice
from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch

rounding = Choice("G4LAB_ROUTER_NORM_ROUNDING", ("transformers", "sglang", "two_step", "fp32"))


def normed(x, scale, eps):
    """norm(x) * scale * H**-0.5, [T, H], in the chosen rounding."""
    from g4lab.kernels.router_norm import router_norm

    count("router_norm")
    return router_norm(x, scale, eps, rounding=rounding())


def _forward(router, x):
    """Stands in for Gemma4Router.forward: [T, H] -> raw logits [T, E]."""
    return router.proj(normed(x, router.scale, router.norm.eps))[0]


PATCH = Patch(
    name="router_norm",
    effect="norms and scales the router's input in one launch, rounding as G4LAB_ROUTER_NORM_ROUNDING says "
    "(default transformers)",
    source="SGLang PR #26588",
    hooks=(Hook("sglang.srt.models.gemma4_causal.Gemma4Router.forward", "replace", _forward),),
    requires="a CUDA GPU, or TRITON_INTERPRET=1 on a CPU",
    counts="calls of the router's norm, one for each MoE layer and step; router_scale then has none to correct",
    kernel="_router_norm_kernel",  # what it replaces, a plain RMSNorm, still runs elsewhere in the layer
    declines=rounding.declines,
)
