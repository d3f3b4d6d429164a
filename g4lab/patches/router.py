"""Patch `router`: SGLang's Gemma-4 routing by g4lab's one-launch kernel, bit-identical to the eager chain by default.

SGLang 0.5.17 and 0.5.21 route on CUDA by the same fused kernel, which is not bit-identical to the eager chain (SGLang
PR #26588 took such a fusion out again after it cost accuracy under MTP), and on the CPU by the eager chain itself.
"""

from __future__ import annotations

from g4lab.patches.choices import Choice
from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch

rounding = Choice("G4LAB_ROUTER_ROUNDING", ("eager", "fp32"))  # eager: as the logits' dtype rounds


def _fused_routing(gating_output, per_expert_scale, topk):
    """Stands in for SGLang's gemma4_fused_routing: [T, E] logits, [E] scales -> fp32 [T, K] and int32 [T, K]."""
    from g4lab.kernels.router import route

    count("router")
    return route(gating_output, per_expert_scale, topk, rounding=rounding())


def _route_this_layer(result, moe, *args, **kwargs):
    """After Gemma4MoE.__init__: the layer's routing function sits in a closure, so put ours in its place."""

    def routing(hidden_states, gating_output, topk, renormalize):
        return _fused_routing(gating_output, moe.per_expert_scale, topk)

    moe.topk.topk_config.custom_routing_function = routing


PATCH = Patch(
    name="router",
    effect="routes in one launch, bit-identical to the eager chain (G4LAB_ROUTER_ROUNDING=eager, default) or in fp32",
    source="SGLang PR #26588",
    hooks=(
        Hook(
            "sglang.kernels.ops.moe.gemma4_routing.gemma4_fused_routing",
            "replace",
            _fused_routing,
            device="cuda",
            earlier=("sglang.kernels.ops.layernorm.gemma4_fused_ops.gemma4_fused_routing",),  # 0.5.17
        ),
        Hook("sglang.srt.models.gemma4_causal.Gemma4MoE.__init__", "after", _route_this_layer, device="cpu"),
    ),
    requires="a CUDA GPU, or TRITON_INTERPRET=1 on a CPU",
    counts="calls of the routing function",
    kernel="_route_kernel",
    # SGLang's own kernel, or the first of the eager chain; sampling needs neither.
    gone={"kernels": ("gemma4_routing_kernel", "gatherTopK"), "operators": ("^aten::topk$",)},
    declines=rounding.declines,
)
