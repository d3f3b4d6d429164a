"""Random weights by name: what a tensor holds follows from its name, its shape and the seed, and from nothing else.

The rules make a small random model behave enough like a trained one to test an engine with:
- every scale differs from one (router, experts, layers, norms): an engine that drops a scale gives other tokens;
- the final norm's weights have random signs. LM head and embedding are one matrix, so a random model with positive
  weights finds its last token most likely and repeats it for ever; with signs the next token is another one;
- attention and MLP outputs are added at about a quarter of the embedding's size, so that the context matters while the
  last token still decides most: an assistant can learn to draft (`g4lab.gemma4.assistant`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from g4lab.gemma4.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    import torch

# Uniform ranges of the one-dimensional weights, first match wins.
_RANGES = (
    (("layer_scalar",), (0.8, 1.2)),
    (("router.scale", "router.per_expert_scale"), (0.5, 2.0)),
    (("q_norm.weight", "k_norm.weight"), (1.0, 2.0)),
    (
        ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight", "post_per_layer_input_norm.weight"),
        (0.1, 0.4),
    ),
    (("model.norm.weight",), (1.5, 4.5)),
    (("",), (0.5, 1.5)),
)


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The fp32 tensor that `name` holds in the random checkpoint of `seed`.

    Matrices are normal with variance 1 / fan-in (the last dimension). Special tokens' rows of the embedding are short,
    so that greedy decoding does not end a sequence.
    """
    import torch

    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    if len(shape) > 1:
        weight = torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5)
        if name.endswith("embed_tokens.weight"):
            weight[: len(SPECIAL_TOKENS)] *= 0.1
        return weight
    low, high = next(bounds for endings, bounds in _RANGES if name.endswith(endings))
    weight = low + (high - low) * torch.rand(shape, generator=generator)
    if name == "model.norm.weight":
        weight *= torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return weight
