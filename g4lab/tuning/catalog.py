"""Kernels that can be compiled ahead of time, by name: where the function that returns their CompileCase lives.

A new kernel adds its line here and a `compile_case(**choices)` in its module.
"""

import importlib

from g4lab.errors import bad

CASES = {
    "router": "g4lab.kernels.router:compile_case",
    "qkv_norm": "g4lab.kernels.qkv_norm:compile_case",
    "qkv_norm_rope_kv": "g4lab.kernels.qkv_norm_rope_kv:compile_case",
    "router_norm": "g4lab.kernels.router_norm:compile_case",
    "residual_norm": "g4lab.kernels.residual_norm:compile_case",
    "dual_residual_norm": "g4lab.kernels.residual_norm:dual_compile_case",
    "extend_attention": "g4lab.kernels.extend_attention:compile_case",
    "sglang_extend_attention": "g4lab.tuning.peers:sglang_extend_attention",
    "fused_moe": "g4lab.kernels.fused_moe:compile_case",
    "sglang_fused_moe": "g4lab.tuning.peers:sglang_fused_moe",
    "sglang_router": "g4lab.tuning.peers:sglang_router",
    "sglang_qkv_norm": "g4lab.tuning.peers:sglang_qkv_norm",
    "sglang_residual_norm": "g4lab.tuning.peers:sglang_residual_norm",
    "sglang_dual_residual_norm": "g4lab.tuning.peers:sglang_dual_residual_norm",
}


def find(name: str):
    """The function that builds `name`'s CompileCase. Raises BadInput for a name that is not in CASES."""
    if name not in CASES:
        raise bad("kernel", name, "one of " + ", ".join(CASES))
    module, function = CASES[name].split(":")
    return getattr(importlib.import_module(module), function)
