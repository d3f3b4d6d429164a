"""Patch `residual_norm`: the end of SGLang's Gemma-4 decoder layer, norm(s) + residual * layer_scalar, in one launch.

SGLang 0.5.21 fuses it on CUDA with one rounding at the end ("fp32"), for layers without per-layer embeddings only; with
them, and on a CPU, it runs operator by operator, each rounded ("eager", as transformers).
$G4LAB_RESIDUAL_NORM_ROUNDING chooses; the default is eager.
"""

from __future__ import annotations

from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch
from g4lab.patches.rounding import Rounding

rounding = Rounding("G4LAB_RESIDUAL_NORM_ROUNDING", ("eager", "fp32"))


def _forward(layer, positions, hidden_states, per_layer_input, forward_batch, **kwargs):
    """Stands in for Gemma4DecoderLayer.forward: hidden_states [T, H] -> ([T, H], None)."""
    attended = layer.self_attn(
        positions=positions, hidden_states=layer.input_layernorm(hidden_states), forward_batch=forward_batch
    )
    normed, residual = layer.pre_feedforward_layernorm(layer.post_attention_layernorm(attended), hidden_states)
    branches = [layer.mlp(normed)]
    if layer.enable_moe_block:
        logits = layer.router(residual)
        branches.append(layer.moe(layer.pre_feedforward_layernorm_2(residual), logits))
    if not layer.has_ple or per_layer_input is None:
        return _close(layer, branches, residual, layer.layer_scalar), None
    hidden_states = _close(layer, branches, residual, None)
    contribution = _per_layer_contribution(layer, hidden_states, per_layer_input)
    norm = layer.post_per_layer_input_norm
    return _residual_norm(contribution, norm.weight, hidden_states, layer.layer_scalar, norm.eps), None


def _close(layer, branches, residual, scalar):
    """The one branch (dense MLP) or both (MLP and experts), normed, joined, normed, added, scaled."""
    from g4lab.kernels.residual_norm import dual_residual_norm

    norm = layer.post_feedforward_layernorm
    if len(branches) == 1:
        return _residual_norm(*branches, norm.weight, residual, scalar, norm.variance_epsilon)
    count("residual_norm")
    mlp, experts = branches
    weights = layer.post_feedforward_layernorm_1.weight, layer.post_feedforward_layernorm_2.weight
    return dual_residual_norm(
        mlp, weights[0], experts, weights[1], norm.weight, residual, scalar, norm.variance_epsilon, rounding=rounding()
    )


def _residual_norm(x, weight, residual, scalar, eps):
    from g4lab.kernels.residual_norm import residual_norm

    count("residual_norm")
    return residual_norm(x, weight, residual, scalar, eps, rounding=rounding())


def _per_layer_contribution(layer, hidden_states, per_layer_input):
    """The layer's own embedding of each token, gated by what the token has become: [T, H]."""
    from torch.nn.functional import gelu

    gate, _ = layer.per_layer_input_gate(hidden_states)
    return layer.per_layer_projection(gelu(gate, approximate="tanh") * per_layer_input)[0]


PATCH = Patch(
    name="residual_norm",
    effect="ends each decoder layer (norms, residual, layer scalar) in one launch, rounding as "
    "G4LAB_RESIDUAL_NORM_ROUNDING says (default eager)",
    source="SGLang PR #26588",
    hooks=(Hook("sglang.srt.models.gemma4_causal.Gemma4DecoderLayer.forward", "replace", _forward),),
    requires="a CUDA GPU, or TRITON_INTERPRET=1 on a CPU",
    counts="calls of the layer's end, one for each layer and step, two with per-layer embeddings",
    kernel="_residual_norm_kernel",  # found in _dual_residual_norm_kernel, too
    gone={"kernels": ("_gemma_rmsnorm_residual_kernel", "_gemma_dual_rmsnorm_residual_kernel")},
    declines=rounding.declines,
)
