"""Opt-in patches for runs with random weights: dummy weights that spread the routing, and a report of expert load.

SGLang's --load-format dummy seeds every tensor alike and makes norms and layer scalars +-1e-3, too: in the 26B-A4B's
layers 1-29 a batch of 64 distinct tokens then uses 12.6 of 128 experts on average (the last layers of a deep tiny twin:
8 of 128, the same for all), so that too few weights are read and MoE time is flattered. Spread or not, random weights
do not route as the real checkpoint does: show the expert load beside every such figure.
"""

from __future__ import annotations

import zlib

from g4lab.patches.counting import count, note
from g4lab.patches.registry import Hook, Patch

SPAN = 0.03  # of all matrices; a branch's closing norm is small, so that the residual stream keeps the token apart
CLOSING_NORM = 0.02
_CLOSING = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
_ONES = ("layer_scalar", "router.scale", "per_expert_scale", "weight_scale_inv")


def _spread(model, low=-SPAN, high=SPAN, seed=1234):
    """Stands in for SGLang's initialize_dummy_weights; SGLang calls it with the model alone."""
    count("spread_dummy")
    spread(model, low, high, seed)


def spread(model, low=-SPAN, high=SPAN, seed=1234):
    """Fill a model's floating-point tensors in place: matrices uniform, each seeded by its name; norms and scales 1."""
    import torch

    for name, tensor in model.state_dict().items():
        if not torch.is_floating_point(tensor):
            continue
        if "norm" in name or name.endswith(_ONES):
            tensor.fill_(CLOSING_NORM if name.endswith(_CLOSING) else 1.0)
            continue
        generator = torch.Generator(tensor.device).manual_seed(seed + zlib.crc32(name.encode()))
        if tensor.element_size() == 1:  # fp8 cannot be filled by uniform_
            tensor.copy_(torch.empty_like(tensor, dtype=torch.float16).uniform_(low, high, generator=generator))
        else:
            tensor.uniform_(low, high, generator=generator)


SPREAD_DUMMY = Patch(
    name="spread_dummy",
    effect="makes --load-format dummy weights that use nearly all experts, instead of a tenth of them",
    source="measured on SGLang 0.5.21's dummy weights of the 26B-A4B",
    hooks=(Hook("sglang.srt.model_loader.weight_utils.initialize_dummy_weights", "replace", _spread),),
    requires="--load-format dummy",
    counts="models filled",
    opt_in=True,
)

_load: dict[int, dict] = {}


def _watch(result, hidden_states, router_logits, *args, layer_id=None, **kwargs):
    """After select_experts: note the largest batch seen at each layer. Waits for the device, so it skips captures."""
    import torch

    ids = getattr(result, "topk_ids", None)
    tokens = router_logits.shape[0]
    if ids is None or tokens < _load.get(layer_id, {"tokens": 1})["tokens"]:
        return
    if ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    count("expert_load")
    per_expert = torch.bincount(ids[ids >= 0].long(), minlength=router_logits.shape[1])
    _load[layer_id] = {
        "layer": layer_id,
        "tokens": tokens,
        "experts": router_logits.shape[1],
        "used": int((per_expert > 0).sum()),
        "most_tokens_on_one": int(per_expert.max()),
    }
    note("expert_load", [_load[layer] for layer in sorted(_load)])


EXPERT_LOAD = Patch(
    name="expert_load",
    effect="reports how many experts the largest batch used in each layer; waits for the device: never while timing",
    source="measured on SGLang 0.5.21's dummy weights of the 26B-A4B",
    hooks=(Hook("sglang.srt.layers.moe.topk.select_experts", "after", _watch),),
    requires="eager steps: on a GPU --disable-cuda-graph",
    counts="batches looked at",
    opt_in=True,
)
