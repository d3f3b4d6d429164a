"""Patch `residual_norm`: the end of SGLang's Gemma-4 decoder layer, norm(s) + residual * layer_scalar, in one launch.

SGLang 0.5.21 fuses it on CUDA with one rounding at the end ("fp32"), for layers without per-layer embeddings only; with
them, and on a CPU, it runs operator by operator, each rounded ("eager", as transformers).
$G4LAB_RESIDUAL_NORM_ROUNDING chooses; the default is eager.
"""

from __future__ import annotations

from g4lab.patches.choices import Choice
from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch

rounding = Choice("G4LAB_RESIDUAL_NORM_ROUNDING", ("eager", "fp32"))


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
    eps = layer.post_feedforward_layernorm.variance_epsilon
    if not layer.has_ple or per_layer_input is None:
        return join(layer, branches, residual, layer.layer_scalar, eps), None
    hidden_states = join(layer, branches, residual, None, eps)
    contribution = _per_layer_contribution(layer, hidden_states, per_layer_input)
    return add(contribution, layer.post_per_layer_input_norm.weight, hidden_states, layer.layer_scalar, eps), None


def join(layer, branches, residual, scalar, eps):
    """The dense MLP's branch, or it and the experts', normed, joined, normed, added to the residual, scaled; [T, H]
    each. layer: SGLang's or transformers', which name their norms alike."""
    from g4lab.kernels.residual_norm import dual_residual_norm

    weight = layer.post_feedforward_layernorm.weight
    if len(branches) == 1:
        return add(*branches, weight, residual, scalar, eps)
    count("residual_norm")
    first, second = layer.post_feedforward_layernorm_1.weight, layer.post_feedforward_layernorm_2.weight
    mlp, experts = branches
    return dual_residual_norm(mlp, first, experts, second, weight, residual, scalar, eps, rounding=rounding())


def add(x, weight, residual, scalar, eps):
    """(norm(x) * weight + residual) * scalar, [T, H]; scalar may be None."""
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
