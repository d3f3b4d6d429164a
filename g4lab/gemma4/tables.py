"""The models and their layers as tables."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from g4lab.gemma4 import costs
from g4lab.gemma4.specs import FULL, NAMES, SLIDING, spec

if TYPE_CHECKING:
    import pandas as pd

# Google's Gemma 4 model card, in billions: all parameters, and those active (26B-A4B) or "effective" (E2B, E4B). The
# totals of E2B and E4B are left out: they include vision and audio encoders, which the text model does not have.
PUBLISHED_BILLIONS = {"26b-a4b": (25.2, 3.8), "31b": (30.7, 30.7), "e4b": (math.nan, 4.5), "e2b": (math.nan, 2.3)}


def models_frame() -> pd.DataFrame:
    """One row per model: parameters, bf16 weights (GB = 1e9 bytes), layers by kind, heads, bf16 KV bytes per token."""
    import pandas as pd

    return pd.DataFrame([_model_row(name) for name in NAMES]).set_index("model")


def counts_frame() -> pd.DataFrame:
    """Parameters counted here, those of the model transformers builds from the same configuration, and the published.

    `exact` says that count and model agree to the parameter. Builds every model on the meta device: about 10 s, no
    memory.
    """
    import pandas as pd
    import torch
    from transformers import Gemma4ForCausalLM

    rows = []
    for name in NAMES:
        with torch.device("meta"):
            model = Gemma4ForCausalLM(spec(name).hf_config())
        built, counted = sum(p.numel() for p in model.parameters()), costs.total_parameters(spec(name))
        row = {"model": name, "counted": counted, "transformers": built, "exact": counted == built}
        active = {"counted_active_b": round(costs.active_parameters(spec(name)) / 1e9, 3)}
        published = dict(zip(("published_b", "published_active_b"), PUBLISHED_BILLIONS.get(name, ()), strict=False))
        rows.append(row | active | published)
    return pd.DataFrame(rows).set_index("model")


def layers_frame(name: str) -> pd.DataFrame:
    """One row per layer of one model, the fields of `g4lab.gemma4.Layer`. Raises BadInput for an unknown name."""
    import pandas as pd

    rows = [asdict(layer) | {"qkv_mode": layer.qkv_mode.value} for layer in spec(name).layers]
    return pd.DataFrame(rows).set_index("index").astype({"window": "Int64"})


def _model_row(name: str) -> dict:
    s = spec(name)
    sliding, full = s.of_kind(SLIDING), s.of_kind(FULL)
    return {
        "model": name,
        "parameters": costs.total_parameters(s),
        "active": costs.active_parameters(s),
        "weights_gb": round(2 * costs.total_parameters(s) / 1e9, 4),
        "sliding_layers": len(sliding),
        "full_layers": len(full),
        "kv_writing_layers": sum(layer.owns_kv for layer in s.layers),
        "experts": s.num_experts,
        "top_k": s.top_k_experts,
        "q_heads": s.num_attention_heads,
        "kv_heads_sliding": sliding[0].num_kv_heads,
        "kv_heads_full": full[0].num_kv_heads,
        "head_dim_sliding": s.head_dim,
        "head_dim_full": s.global_head_dim,
        "window": s.sliding_window,
        "kv_bytes_sliding": int(s.kv_bytes_per_token(SLIDING)),
        "kv_bytes_full": int(s.kv_bytes_per_token(FULL)),
    }
