"""Other projects' kernels, as their own launchers specialise them, to compile beside ours."""

import importlib

from g4lab.errors import Unavailable, bad
from g4lab.kernels.compile_case import CompileCase


def sglang_router(*, dtype="bf16", num_experts=128, top_k=8):
    """SGLang's `gemma4_fused_routing` (power-of-two expert counts)."""
    signature = {
        "gating_ptr": f"*{dtype}:16",
        "per_expert_scale_ptr": f"*{dtype}:16",
        "topk_weights_ptr": "*fp32:16",
        "topk_ids_ptr": "*i32:16",
        "stride_g_t": "i32:16",
    }
    kernel = _sglang("moe.gemma4_routing", "_gemma4_routing_kernel")
    return CompileCase(kernel, signature, {"E": num_experts, "K": top_k, "BLOCK_E": num_experts}, {"num_warps": 1})


def sglang_qkv_norm(*, dtype="bf16", mode="QKV", num_q_heads=16, num_kv_heads=8, head_dim=256, tokens=1):
    """SGLang's `gemma_qkv_rmsnorm`: a program for each token's head up to 256 tokens, for each token above.

    mode: "QKV" (also what it runs on K=V layers, whose projection it has twice) or "Q".
    """
    if mode not in ("QKV", "Q"):
        raise bad("mode", mode, "QKV or Q: SGLang 0.5.21 has no kernel of its own for K=V layers")
    signature = {f"{name}_ptr": f"*{dtype}:16" for name in ("Q", "K", "V", "Q_w", "K_w")}
    signature |= {f"stride_{name}_m": "i32:16" for name in "qkv"} | {"eps": "fp32"}
    constants = {
        "NUM_Q_HEADS": num_q_heads,
        "NUM_KV_HEADS": num_kv_heads if mode == "QKV" else 0,
        "HEAD_DIM": head_dim,
        "HAS_KV": mode == "QKV",
        "BY_HEAD": tokens <= 256,
        "BLOCK": _power_of_two(head_dim),
    }
    return CompileCase(_sglang(_NORMS, "_gemma_qkv_rmsnorm_kernel"), signature, constants)


def sglang_residual_norm(*, dtype="bf16", hidden_size=2816):
    """SGLang's `gemma_rmsnorm_residual_scalar`."""
    signature = {f"{name}_ptr": f"*{dtype}:16" for name in ("X", "W", "Residual", "Scalar", "Out")}
    signature |= dict.fromkeys(("stride_x", "stride_r", "stride_o", "N"), "i32:16") | {"eps": "fp32"}
    constants = {"HAS_SCALAR": True, "BLOCK_SIZE": _power_of_two(hidden_size)}
    return CompileCase(_sglang(_NORMS, "_gemma_rmsnorm_residual_kernel"), signature, constants)


def sglang_dual_residual_norm(*, dtype="bf16", hidden_size=2816):
    """SGLang's `gemma_dual_rmsnorm_residual_scalar`."""
    pointers = ("X1", "W1", "X2", "W2", "W3", "Residual", "Scalar", "Out")
    signature = {f"{name}_ptr": f"*{dtype}:16" for name in pointers}
    signature |= dict.fromkeys(("stride_x1", "stride_x2", "stride_r", "stride_o", "N"), "i32:16")
    signature |= {f"eps{i}": "fp32" for i in (1, 2, 3)}
    kernel = _sglang(_NORMS, "_gemma_dual_rmsnorm_residual_kernel")
    return CompileCase(kernel, signature, {"BLOCK_SIZE": _power_of_two(hidden_size)})


_NORMS = "layernorm.gemma4_fused_ops"


def _sglang(module, name):
    try:
        return getattr(importlib.import_module(f"sglang.kernels.ops.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"SGLang's {name} cannot be imported: {error}") from error


def _power_of_two(n):
    return 1 << (n - 1).bit_length()
