"""Where SGLang's attention backend would write this layer's K and V, and when a kernel cannot write there itself.

Why SGLang 0.5.21 has its own fused write switched off. Gemma4Attention.forward says "accuracy regression in
launch_server path" and no more. Its kernel is not to blame, by reading: rope.cuh stores the very registers that it
rotates in place, so the bits in the cache are those of the separate launches. The place is wrong:
create_fused_set_kv_buffer_arg passes forward_batch.out_cache_loc for every layer, which are slots of the FULL pool,
while the sliding layers of a hybrid pool live in the SWA pool under translated slots (SWAKVPool.set_kv_buffer takes
swa_loc for them). On fresh pools both numbers are the same, so a short check passes; once requests have come and gone
they differ, prefill still is right (it has the new keys at hand), and decode misses keys or reads another request's.
tests/test_attention_patches.py shows all three on SGLang's own pools. SGLang PR #19107 repaired the same mismatch in
the fp8 write of trtllm_mha; SGLang's guard enable_fused_set_kv_buffer excludes SWAKVPool, but Gemma-4 does not ask it.

A second trap, for prefill CUDA graphs: the attention metadata is made anew for each replay, outside of the captured
segments, so a captured write would keep the slots of the capture. What SGLang's authors saw is not public; these are
two ways in which it does go wrong, and the first is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cannot_rotate(attn, positions: torch.Tensor) -> str | None:
    """Why norms and rotary embedding of this layer cannot be one launch, or None."""
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.layers.rotary_embedding.rope_variant import Gemma4RotaryEmbedding

    rotary = attn.rotary_emb
    if type(rotary) not in (RotaryEmbedding, Gemma4RotaryEmbedding):
        return f"rotary embedding {type(rotary).__name__}"
    if not rotary.is_neox_style or rotary.cos_sin_cache.shape[-1] != attn.head_dim:
        return "the rotary embedding is not neox over the whole head"
    if positions.is_cuda and (rotary.use_fallback_kernel or rotary._force_native):
        return "the rotary embedding runs another kernel than SGLang's fused one"
    if positions.dim() != 1:
        return f"{positions.dim()}-dimensional positions"
    return None


def cannot_write(attn, forward_batch) -> str | None:
    """Why K and V of this layer cannot be written by the same launch in this step, or None."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.model_executor.forward_context import get_attn_backend
    from sglang.srt.model_executor.runner_backend_utils.tc_piecewise_cuda_graph import (
        get_tc_piecewise_forward_context,
    )

    backend = get_attn_backend()
    if type(backend) not in (TritonAttnBackend, TorchNativeAttnBackend):
        return f"attention backend {type(backend).__name__}"
    if get_tc_piecewise_forward_context() is not None:
        return "a prefill CUDA graph: its write slots are not those of the capture"
    if _splits_context(forward_batch) or getattr(backend, "dcp_size", 1) > 1:
        return "context parallelism"
    translator = getattr(backend, "kv_index_translator", None)
    if getattr(translator, "is_translating", False) or getattr(backend, "_translate_kv_loc", None) is not None:
        return "a unified KV pool"  # the latter in SGLang 0.5.17
    if attn.attn.k_scale is not None or attn.attn.v_scale is not None:
        return "a scaled KV cache"
    pool = _pool_of(attn, backend.token_to_kv_pool)
    if type(pool) is not MHATokenToKVPool or pool.use_hnd or pool.kv_cache_layout != "nhd":
        return f"KV pool {type(pool).__name__} with layout {getattr(pool, 'kv_cache_layout', 'unknown')}"
    if pool.is_quantized_kv_cache:
        return "a quantised KV cache"
    slots = _slots(attn, backend, forward_batch)
    if slots is None or slots.shape != forward_batch.positions.shape:
        return "not one write slot for each token"
    return None


def _splits_context(forward_batch) -> bool:
    """Whether this step's tokens are spread over ranks."""
    from sglang.srt.layers.cp import utils

    active = getattr(utils, "is_cp_active", None) or utils.is_cp_v2_active  # SGLang 0.5.17's name
    return active(forward_batch)


def place(attn, forward_batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """k_cache and v_cache [slots, Hkv, D] of this layer, and the slot of each token [T], where cannot_write is None."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    backend = get_attn_backend()
    k_cache, v_cache = backend.token_to_kv_pool.get_kv_buffer(attn.attn.layer_id)
    return k_cache, v_cache, _slots(attn, backend, forward_batch)


def _is_in_swa_pool(attn, pool) -> bool:
    mapping = getattr(pool, "layers_mapping", None)
    return mapping is not None and mapping[attn.attn.layer_id][1]


def _pool_of(attn, pool):
    """The pool that holds this layer: one of the two in a SWAKVPool, or the pool itself."""
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    if type(pool) is not SWAKVPool:
        return pool
    return pool.swa_kv_pool if _is_in_swa_pool(attn, pool) else pool.full_kv_pool


def _slots(attn, backend, forward_batch):
    """What the backend hands to set_kv_buffer as this layer's slots: translated ones for the SWA pool."""
    if not _is_in_swa_pool(attn, backend.token_to_kv_pool):
        return forward_batch.out_cache_loc
    holder = backend.forward_metadata if hasattr(backend.forward_metadata, "swa_out_cache_loc") else backend
    return holder.swa_out_cache_loc
