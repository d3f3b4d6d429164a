"""Other projects' kernels, as their own launchers specialise them, to compile beside ours."""

import importlib

from g4lab.errors import Unavailable, bad
from g4lab.kernels.compile_case import CompileCase
from g4lab.kernels.extend_tiles import ExtendTile, pick_tile
from g4lab.kernels.moe_tiles import MoETile, pick_config


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


def sglang_extend_attention(
    *, dtype="bf16", head_dim=256, window=None, tile=None, group=2, logit_cap=0.0, custom_mask=False
):
    """SGLang's `extend_attention_fwd`: page size 1, causal, no sinks; `tile` None is the one it takes itself on sm_90.

    custom_mask: as for the verification of drafts, where the mask covers the new tokens.
    """
    if tile is None:
        launch = {"batch": 1, "max_len_extend": 1, "max_prefix": 0, "window": window, "group": group}
        tile = pick_tile(arch="sm_90", head_dim=head_dim, table="sglang", **launch)
    if not isinstance(tile, ExtendTile):
        raise bad("tile", tile, "an ExtendTile, or None")
    split = {576: 512, 288: 256, 192: 128}  # head dims that it loads in two parts
    main = split.get(head_dim, _power_of_two(head_dim))
    rows = ("Q_Extend", "K_Extend", "V_Extend", "O_Extend", "K_Buffer", "V_Buffer")
    strides = ("qbs", "qh", "kbs", "kh", "vbs", "vh", "obs", "oh", "lse_bs", "lse_h")
    strides += ("buf_kbs", "buf_kh", "buf_vbs", "buf_vh", "buf_kpage", "buf_ktok", "buf_vpage", "buf_vtok")
    signature = dict.fromkeys(rows, f"*{dtype}:16") | dict.fromkeys(("qo_indptr", "kv_indices"), "*i64:16")
    signature |= {"kv_indptr": "*i32:16"} | dict.fromkeys(("sm_scale", "k_scale", "v_scale"), "fp32")
    signature |= dict.fromkeys((f"stride_{name}" for name in strides), "i32:16") | {"compact_batch_size": "i32"}
    signature |= dict.fromkeys(("aux0_stride_t", "aux0_stride_h", "aux0_len"), "i32:16")
    constants = dict.fromkeys(("LSE_Extend", "sink_ptr", "SCORE_MOD", "Aux0"))
    if custom_mask:
        signature |= {"mask_ptr": "*u8:16", "mask_indptr": "*i64:16"}
    else:
        constants |= {"mask_ptr": None, "mask_indptr": None}
    if custom_mask and window is not None:
        signature["window_kv_offset_ptr"] = "*i32:16"
    else:
        constants["window_kv_offset_ptr"] = None
    if group == 1:
        constants["kv_group_num"] = 1
    else:
        signature["kv_group_num"] = "i32"
    off = ("STORE_LSE", "SKIP_PREFIX", "SKIP_EXTEND", "STORE_TRANSPOSE", "HAS_SINK", "USE_COMPACT_TILE_GRID")
    off += ("USE_EXP2", "USE_FP8_PREFIX", "USE_FP8_EXTEND", "IS_GFX1250", "IDENTITY_KV_INDICES")
    constants |= dict.fromkeys(off, False) | {"FP8_MAX": 1.0, "PAGE_SIZE": 1, "xai_temperature_len": -1}
    constants |= {
        "SLIDING_WINDOW_SIZE": -1 if window is None else window,
        "logit_cap": logit_cap,
        "Lq": head_dim,
        "Lv": head_dim,
        "BLOCK_DMODEL": main,
        "BLOCK_DPE": head_dim - main if head_dim in split else 0,
        "BLOCK_DV": _power_of_two(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_N_PREFIX": tile.block_n,
        "USE_CUSTOM_MASK": custom_mask,
        "IS_CAUSAL": True,
        "SKIP_PREFIX_CUSTOM_MASK": True,
    }
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return CompileCase(_sglang("attention.extend_attention", "_fwd_kernel"), signature, constants, options)


def sglang_fused_moe(
    *, dtype="bf16", product="gate_up", hidden=2816, width=704, num_experts=128, top_k=8, tile=None
):  # fmt: skip
    """SGLang's `fused_moe_kernel` for the "gate_up" or the "down" product, unquantised, no expert on another rank.

    Without the wait for and the release of the launches around it that it has on sm_90 and later (PDL).
    """
    import triton.language as tl

    types = {"bf16": tl.bfloat16, "fp16": tl.float16}
    if product not in ("gate_up", "down"):
        raise bad("product", product, "gate_up or down")
    if dtype not in types:
        raise bad("dtype", dtype, "one of " + ", ".join(types))
    tile = tile or getattr(pick_config(8192, top_k, num_experts), product)
    if not isinstance(tile, MoETile):
        raise bad("tile", tile, "a MoETile, or None")
    down = product == "down"
    signature = {f"{name}_ptr": f"*{dtype}:16" for name in "abc"} | {"topk_weights_ptr": "*fp32:16"}
    signature |= dict.fromkeys(("sorted_token_ids_ptr", "expert_ids_ptr", "num_tokens_post_padded_ptr"), "*i32:16")
    signature |= dict.fromkeys(("EM", "num_valid_tokens"), "i32")
    strides = ("am", "be", "bn", "bias_e", "bias_n", "cm", "asm", "ask", "bse", "bsk", "bsn")
    signature |= dict.fromkeys(("N", "K", *(f"stride_{name}" for name in strides)), "i32:16")
    absent = ("a_desc", "b_desc", "bias_ptr", "a_scale_ptr", "b_scale_ptr", "add_mask_ptr")
    off = ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "per_channel_quant", "c_sorted", "filter_expert")
    off += ("swap_ab", "FUSE_ADD_TO_OUTPUT", "MASK_OUTPUT", "FUSE_SUM_ALL_REDUCE", "LORA_PRESERVE_BASE")
    off += ("FUSE_SWIGLU", "USE_GDC", "GDC_EARLY")
    constants = dict.fromkeys(absent) | dict.fromkeys(off, False) | dict.fromkeys(("group_n", "group_k"), 0)
    constants |= dict.fromkeys(("stride_ak", "stride_bk", "stride_cn"), 1)
    constants |= {
        "BLOCK_SIZE_M": tile.block_m,
        "BLOCK_SIZE_N": tile.block_n,
        "BLOCK_SIZE_K": tile.block_k,
        "GROUP_SIZE_M": tile.group_m,
        "MUL_ROUTED_WEIGHT": down,
        "top_k": 1 if down else top_k,
        "ROUTER_TOPK": top_k,
        "compute_type": types[dtype],
        "even_Ks": (width if down else hidden) % tile.block_k == 0,
    }
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return CompileCase(_sglang("moe.fused_moe_triton_kernels", "fused_moe_kernel"), signature, constants, options)


_NORMS = "layernorm.gemma4_fused_ops"


def _sglang(module, name):
    try:
        return getattr(importlib.import_module(f"sglang.kernels.ops.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"SGLang's {name} cannot be imported: {error}") from error


def _power_of_two(n):
    return 1 << (n - 1).bit_length()
