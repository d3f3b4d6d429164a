"""The body of SGLang's Gemma-4 attention, put together from the steps that the patches mark on a layer.

    q, k, v projections -> norms -> rotary embedding -> KV write and attention -> output projection

A layer for which no marked step has work to do runs SGLang's own forward, whole. Whether a layer reads another layer's
KV is looked up at every call: an MTP assistant's layers are told so only after they were built.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

from g4lab.patches import kv_single_gemm, kv_write
from g4lab.patches.counting import count, tally

if TYPE_CHECKING:
    import torch


def mark(step: str):
    """A hook after Gemma4Attention.__init__ that has the new layer take `step` (a patch's name)."""

    def hook(result, attn, *args, **kwargs):
        vars(attn).setdefault("g4lab_steps", set()).add(step)
        attn.forward = types.MethodType(forward, attn)

    return hook


def forward(attn, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch, **kwargs) -> torch.Tensor:
    """Stands in for Gemma4Attention.forward: positions [T], hidden_states [T, H] -> [T, H]."""
    steps = attn.g4lab_steps
    shared = attn.is_kv_shared_layer and attn.kv_shared_layer_index is not None
    rows = kv_single_gemm.rows_needed(attn, shared) if "kv_single_gemm" in steps else None
    fused = "qkv_norm_rope_kv" in steps and _can_fuse(attn, shared, positions, forward_batch)
    if rows is None and not fused and "qkv_norm" not in steps:
        return type(attn).forward(attn, positions, hidden_states, forward_batch, **kwargs)
    q, k, v = _project(attn, hidden_states, shared, rows)
    if fused:
        q, k, v = _norm_rotate_write(attn, q, k, v, positions, forward_batch)
    else:
        q, k, v = (_norm if "qkv_norm" in steps else _sglang_norms)(attn, q, k, v)
        q, k = _rotate(attn, positions, q, k)
    if k is not None:
        k, v = (x.unflatten(-1, (attn.num_kv_heads, attn.head_dim)) for x in (k, v))
    out = attn.attn(
        q.unflatten(-1, (attn.num_heads, attn.head_dim)),
        k,
        v,
        forward_batch=forward_batch,
        save_kv_cache=not (attn.is_kv_shared_layer or fused),
    )
    return attn.o_proj(out.flatten(-2, -1) if out.dim() == 3 else out)[0]


def _can_fuse(attn, shared: bool, positions, forward_batch) -> bool:
    """Whether norms, rotary embedding and KV write can be one launch; a reason why not goes into the patch's report."""
    why_not = kv_write.cannot_rotate(attn, positions)
    if why_not is None and not shared:
        why_not = kv_write.cannot_write(attn, forward_batch)
    if why_not is not None:
        tally("qkv_norm_rope_kv", "declined", why_not)
    return why_not is None


def _project(attn, hidden_states, shared: bool, rows: int | None):
    """q [T, Hq*D], k and v [T, Hkv*D], views of one packed tensor; k and v None where another layer's are read, v None
    where it was left out because K's projection is V's, too."""
    if rows is None:
        qkv, _ = attn.qkv_proj(hidden_states)
    else:
        count("kv_single_gemm")
        qkv = kv_single_gemm.project(attn, hidden_states, rows)
    q = qkv[:, : attn.q_size]
    if shared:
        return q, None, None
    k, v = qkv[:, attn.q_size :].split(attn.kv_size, dim=-1) if rows is None else (qkv[:, attn.q_size :], None)
    return q, k, v


def _choice(attn, k, v) -> dict:
    """What both norm kernels want to know: the mode that these tensors stand for, weights, heads, eps."""
    from g4lab.kernels.qkv_norm import QKVMode

    mode = QKVMode.Q if k is None else QKVMode.QK if v is None else QKVMode.QKV
    return {
        "mode": mode,
        "num_q_heads": attn.num_heads,
        "num_kv_heads": attn.num_kv_heads,
        "head_dim": attn.head_dim,
        "eps": attn.q_norm.eps,
    }


def _norm(attn, q, k, v):
    from g4lab.kernels.qkv_norm import qkv_rmsnorm

    count("qkv_norm")
    k_weight = None if k is None else attn.k_norm.weight
    return qkv_rmsnorm(q, k, v, attn.q_norm.weight, k_weight, **_choice(attn, k, v))


def _norm_rotate_write(attn, q, k, v, positions, forward_batch):
    from g4lab.kernels.qkv_norm_rope_kv import qkv_norm_rope_kv

    count("qkv_norm_rope_kv")
    k_weight, where = None, (None, None, None)
    if k is not None:
        k_weight, where = attn.k_norm.weight, kv_write.place(attn, forward_batch)
    rounding = "fp32" if q.is_cuda else "eager"  # as SGLang's own rotary embedding rounds on that device
    tables = positions, attn.rotary_emb.cos_sin_cache
    return qkv_norm_rope_kv(
        q, k, v, attn.q_norm.weight, k_weight, *tables, *where, rope_rounding=rounding, **_choice(attn, k, v)
    )


def _sglang_norms(attn, q, k, v):
    """SGLang's own norm modules, where only the projection was cut short: v, if any, is the norm of k's projection."""
    q = attn.q_norm(q.unflatten(-1, (attn.num_heads, attn.head_dim))).flatten(-2, -1)
    if k is None:
        return q, None, None
    heads = k.unflatten(-1, (attn.num_kv_heads, attn.head_dim))
    return q, attn.k_norm(heads).flatten(-2, -1), attn.v_norm(heads).flatten(-2, -1)


def _rotate(attn, positions, q, k):
    """SGLang's rotary embedding, which wants a key even where there is none."""
    if k is None:
        return attn.rotary_emb(positions, q, q.new_zeros(q.shape[0], attn.kv_size))[0], None
    return attn.rotary_emb(positions, q, k)
