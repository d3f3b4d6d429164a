"""Every weight of a Gemma-4 text model: name, shape and the part of the model it belongs to.

Names are those of transformers' `Gemma4ForCausalLM` checkpoints. Counting and writing weights both read this one list;
the tests compare it with the model transformers builds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from g4lab.gemma4.specs import Layer, QKVMode, Spec

PARTS = ("embedding", "per-layer embedding", "attention", "dense MLP", "router", "experts", "per-layer input", "norms")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint. `learned` is False for `layer_scalar`, which transformers keeps as a buffer."""

    name: str
    shape: tuple[int, ...]
    part: str
    learned: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensors(spec: Spec) -> list[Tensor]:
    """All tensors of `spec` in the model's order. The LM head is the embedding and is listed once."""
    h = spec.hidden_size
    out = [Tensor("model.embed_tokens.weight", (spec.vocab_size, h), "embedding")]
    for layer in spec.layers:
        out += _layer(spec, layer)
    out.append(Tensor("model.norm.weight", (h,), "norms"))
    if spec.has_ple:
        width = spec.num_hidden_layers * spec.hidden_size_per_layer_input
        out += [
            Tensor("model.embed_tokens_per_layer.weight", (spec.vocab_size, width), "per-layer embedding"),
            Tensor("model.per_layer_model_projection.weight", (width, h), "per-layer input"),
            Tensor("model.per_layer_projection_norm.weight", (spec.hidden_size_per_layer_input,), "norms"),
        ]
    return out


def _layer(spec: Spec, layer: Layer) -> list[Tensor]:
    at, h, d, wide = f"model.layers.{layer.index}.", spec.hidden_size, layer.head_dim, layer.intermediate_size
    q, kv = layer.num_q_heads * d, layer.num_kv_heads * d

    def norm(name: str, size: int = h) -> Tensor:
        return Tensor(at + name + ".weight", (size,), "norms")

    def linear(name: str, out_size: int, in_size: int, part: str) -> Tensor:
        return Tensor(at + name + ".weight", (out_size, in_size), part)

    out = [
        Tensor(at + "layer_scalar", (1,), "norms", learned=False),
        linear("self_attn.q_proj", q, h, "attention"),
        norm("self_attn.q_norm", d),
        linear("self_attn.o_proj", h, q, "attention"),
    ]
    if layer.qkv_mode != QKVMode.Q:
        out += [linear("self_attn.k_proj", kv, h, "attention"), norm("self_attn.k_norm", d)]
    if layer.qkv_mode == QKVMode.QKV:
        out.append(linear("self_attn.v_proj", kv, h, "attention"))
    out += [linear(f"mlp.{name}_proj", wide, h, "dense MLP") for name in ("gate", "up")]
    out.append(linear("mlp.down_proj", h, wide, "dense MLP"))
    norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
    out += [norm(f"{name}_layernorm") for name in norms]
    if spec.has_ple:
        p = spec.hidden_size_per_layer_input
        out += [
            linear("per_layer_input_gate", p, h, "per-layer input"),
            linear("per_layer_projection", h, p, "per-layer input"),
            norm("post_per_layer_input_norm"),
        ]
    if spec.is_moe:
        e, i = spec.num_experts, spec.moe_intermediate_size
        out += [
            linear("router.proj", e, h, "router"),
            Tensor(at + "router.scale", (h,), "router"),
            Tensor(at + "router.per_expert_scale", (e,), "router"),
            Tensor(at + "experts.gate_up_proj", (e, 2 * i, h), "experts"),
            Tensor(at + "experts.down_proj", (e, h, i), "experts"),
        ]
        out += [norm(n) for n in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2")]
        out.append(norm("pre_feedforward_layernorm_2"))
    return out
