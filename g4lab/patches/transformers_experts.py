"""g4lab's expert layer as transformers' experts implementation "g4lab".

    transformers_experts.register()
    model.set_experts_implementation("g4lab")     # or from_pretrained(..., experts_implementation="g4lab")

Patch `fused_moe` for transformers runs the same, on the modules of one model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.patches.counting import count

if TYPE_CHECKING:
    import torch

NAME = "g4lab"


def register() -> None:
    """Make "g4lab" known to transformers as an experts implementation."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, run)


def run(experts, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """Stands in for Gemma4TextExperts.forward: [T, H], ids [T, K] and weights [T, K] -> [T, H].

    Raises:
        BadInput: gradients, experts of another make than Gemma-4's, and what `fused_moe` does not take.
    """
    from g4lab.kernels.fused_moe import fused_moe

    _check(experts, hidden_states)
    count("fused_moe")
    return fused_moe(hidden_states, experts.gate_up_proj, experts.down_proj, top_k_weights, top_k_index)


def _check(experts, hidden_states) -> None:
    import torch
    from transformers.activations import ACT2FN

    if torch.is_grad_enabled() and (hidden_states.requires_grad or experts.gate_up_proj.requires_grad):
        raise bad("hidden_states", "tensors that ask for gradients", "a forward pass under torch.no_grad()")
    if type(experts.act_fn) is not type(ACT2FN["gelu_pytorch_tanh"]):
        raise bad("experts", f"activation {type(experts.act_fn).__name__}", "Gemma-4's gelu_pytorch_tanh")
    makes = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    found = {name: getattr(experts, name, expected) for name, expected in makes.items()}
    if found != makes:
        raise bad("experts", found, f"the make of Gemma4TextExperts, {makes}")
