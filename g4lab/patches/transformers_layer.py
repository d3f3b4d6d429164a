"""Patches `qkv_norm` and `residual_norm` for transformers: what a Gemma-4 attention and a decoder layer do with them.

transformers projects q, k and v apart, and its K=V layers have no V projection at all: there the norm reads K's
projection once for both (mode QK), and layers that read another layer's K and V norm q alone (mode Q).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.patches import residual_norm
from g4lab.patches.counting import count

if TYPE_CHECKING:
    import torch


def attend(
    attn,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    shared_kv_states: dict,
    past_key_values=None,
    **kwargs,
):
    """Stands in for Gemma4TextAttention.forward: [B, S, H] -> [B, S, H] and the attention weights or None."""
    from transformers.models.gemma4 import modeling_gemma4 as gemma4

    q, k, v = _normed_heads(attn, hidden_states)
    q = gemma4.apply_rotary_pos_emb(q, *position_embeddings, unsqueeze_dim=2).transpose(1, 2)
    if k is None:
        k, v = (x.to(q.device) for x in shared_kv_states[attn.layer_type])
    else:
        k = gemma4.apply_rotary_pos_emb(k, *position_embeddings, unsqueeze_dim=2).transpose(1, 2)
        v = v.transpose(1, 2)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, attn.layer_idx)
    if attn.store_full_length_kv:
        shared_kv_states[attn.layer_type] = k, v
    chosen = gemma4.ALL_ATTENTION_FUNCTIONS.get_interface(
        attn.config._attn_implementation, gemma4.eager_attention_forward
    )
    dropout = attn.attention_dropout if attn.training else 0.0
    options = {"dropout": dropout, "scaling": attn.scaling, "sliding_window": attn.sliding_window}
    out, weights = chosen(attn, q, k, v, attention_mask, **options, **kwargs)
    return attn.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def _normed_heads(attn, hidden_states):
    """q [B, S, Hq, D], k and v [B, S, Hkv, D], normed, not yet rotated; k and v None where another layer's are read."""
    from g4lab.kernels.qkv_norm import QKVMode, qkv_rmsnorm

    count("qkv_norm")
    x = hidden_states.flatten(0, -2)
    q, k, v, k_weight, mode = attn.q_proj(x), None, None, None, QKVMode.Q
    if not attn.is_kv_shared_layer:
        k, k_weight, mode = attn.k_proj(x), attn.k_norm.weight, QKVMode.QK
        if attn.v_proj is not None:
            v, mode = attn.v_proj(x), QKVMode.QKV
    heads = {
        "num_q_heads": q.shape[1] // attn.head_dim,
        "num_kv_heads": 1 if k is None else k.shape[1] // attn.head_dim,
        "head_dim": attn.head_dim,
    }
    normed = qkv_rmsnorm(q, k, v, attn.q_norm.weight, k_weight, mode=mode, eps=attn.q_norm.eps, **heads)
    shape = *hidden_states.shape[:-1], -1, attn.head_dim
    return [None if each is None else each.view(shape) for each in normed]


def decode_layer(layer, hidden_states: torch.Tensor, per_layer_input: torch.Tensor | None = None, **kwargs):
    """Stands in for Gemma4TextDecoderLayer.forward: [B, S, H] -> [B, S, H]."""
    shape = hidden_states.shape
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
    residual = hidden_states + layer.post_attention_layernorm(attended)
    branches = [layer.mlp(layer.pre_feedforward_layernorm(residual)).flatten(0, -2)]
    residual = residual.flatten(0, -2)
    if layer.enable_moe_block:
        _, weights, ids = layer.router(residual)
        branches.append(layer.experts(layer.pre_feedforward_layernorm_2(residual), ids, weights))
    eps = layer.post_feedforward_layernorm.eps
    if not layer.hidden_size_per_layer_input:
        return residual_norm.join(layer, branches, residual, layer.layer_scalar, eps).view(shape)
    joined = residual_norm.join(layer, branches, residual, None, eps)
    gated = layer.act_fn(layer.per_layer_input_gate(joined)) * per_layer_input.flatten(0, -2)
    contribution, weight = layer.per_layer_projection(gated), layer.post_per_layer_input_norm.weight
    return residual_norm.add(contribution, weight, joined, layer.layer_scalar, eps).view(shape)
