"""Patches `router` and `router_norm` for transformers: what a Gemma-4 router module does with them.

router: transformers takes a softmax over all E logits, the top k of those probabilities, and divides by their sum;
route takes the softmax of the top k logits. In real numbers both are the same. In floating point they differ by
rounding, and in bf16 and fp16 logits that differ may share a rounded probability: transformers then breaks that tie by
id, route by logit. So in fp32 tokens agree, and in bf16 the patched model routes as SGLang does, not bit for bit as
transformers. router_norm rounds as transformers by default: the same bits, up to the order of the norm's sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.patches import router_norm
from g4lab.patches.counting import count
from g4lab.patches.router import rounding

if TYPE_CHECKING:
    import torch


def forward(router, steps: frozenset[str], hidden_states: torch.Tensor):
    """Stands in for Gemma4TextRouter.forward: [T, H] -> probabilities [T, E], weights [T, K], ids int64 [T, K]."""
    if "router_norm" in steps:
        scaled = router_norm.normed(hidden_states, router.scale, router.eps)
    else:
        scaled = router.norm(hidden_states) * router.scale * router.scalar_root_size
    logits = router.proj(scaled)
    probabilities = logits.softmax(-1)
    if "router" not in steps:
        weights, ids = probabilities.topk(router.config.top_k_experts)
        return probabilities, weights / weights.sum(-1, keepdim=True) * router.per_expert_scale[ids], ids
    from g4lab.kernels.router import route

    count("router")
    weights, ids = route(logits, router.per_expert_scale, router.config.top_k_experts, rounding=rounding())
    return probabilities, weights.to(logits.dtype), ids.long()
