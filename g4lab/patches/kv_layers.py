"""Patch `kv_layers`: KV memory goes to the layers that write KV, and to no others.

SGLang 0.5.21 gives every layer of a Gemma-4 model a buffer in the KV pools, also those that read another layer's KV
(18 of e4b's 42 layers, 20 of e2b's 35) and never touch their own. And with an MTP assistant it charges the assistant's
layers as full-attention ones, although that reads the target's pool and is given 64 slots of its own. Both only cost
tokens: served values stay the same.
"""

from __future__ import annotations

from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch


def _writers(result, *, model, model_config, is_draft_worker, draft_model_idx=None):
    """After resolve_layer_indices: without the layers that share another's KV."""
    import msgspec

    shared = getattr(model_config.hf_text_config, "num_kv_shared_layers", None) or 0
    if is_draft_worker or not shared or not _is_gemma4(model_config) or result.swa_attention_layer_ids is None:
        return None
    first = model_config.hf_text_config.num_hidden_layers - shared
    kept = {
        kind: [layer for layer in getattr(result, kind) if layer < first]
        for kind in ("swa_attention_layer_ids", "full_attention_layer_ids")
    }
    count("kv_layers")
    return msgspec.structs.replace(result, **kept)


def _without_drafts(original, configurator, kvc):
    """Around HybridSWAPoolConfigurator.__init__: a frozen-KV draft is charged nothing."""
    original(configurator, kvc)
    if kvc.spec_algorithm.is_frozen_kv_mtp() and not kvc.is_draft_worker and configurator._draft_full_layers_num:
        count("kv_layers")
        configurator._draft_full_layers_num = 0
        configurator._recompute_cell_size()


def _is_gemma4(model_config) -> bool:
    return any(name.startswith("Gemma4") for name in model_config.hf_config.architectures)


_LAYERS = "sglang.srt.model_executor.model_runner_components.layer_setup."
_POOLS = "sglang.srt.model_executor.pool_configurator.HybridSWAPoolConfigurator."

PATCH = Patch(
    name="kv_layers",
    effect="gives KV memory to the layers that write KV, none to layers that share it and to a frozen-KV draft",
    source="SGLang 0.5.21 resolve_layer_indices and HybridSWAPoolConfigurator",
    hooks=(
        Hook(
            _LAYERS + "resolve_layer_indices",
            "after",
            _writers,
            needs=(_LAYERS + "ModelLayerInfo.swa_attention_layer_ids",),  # SGLang 0.5.17 reads them off the config
        ),
        Hook(_POOLS + "__init__", "around", _without_drafts, needs=(_POOLS + "_recompute_cell_size",)),
    ),
    requires="a newer SGLang than 0.5.17",
    counts="pools made without layers that write no KV, at start",
    opt_in=True,  # the sizes of the pools change, not what is served
)
