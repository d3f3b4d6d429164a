"""Other projects' kernels, as their own launchers specialise them, to compile beside ours."""

from g4lab.errors import Unavailable
from g4lab.kernels.compile_case import CompileCase


def sglang_router(*, dtype="bf16", num_experts=128, top_k=8):
    """SGLang's `gemma4_fused_routing` (power-of-two expert counts)."""
    try:
        from sglang.kernels.ops.moe.gemma4_routing import _gemma4_routing_kernel as kernel
    except ImportError as error:
        raise Unavailable(f"SGLang's fused router cannot be imported: {error}") from error
    signature = {
        "gating_ptr": f"*{dtype}:16",
        "per_expert_scale_ptr": f"*{dtype}:16",
        "topk_weights_ptr": "*fp32:16",
        "topk_ids_ptr": "*i32:16",
        "stride_g_t": "i32:16",
    }
    return CompileCase(kernel, signature, {"E": num_experts, "K": top_k, "BLOCK_E": num_experts}, {"num_warps": 1})
