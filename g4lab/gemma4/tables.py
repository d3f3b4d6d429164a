"""The models and their layers as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from g4lab.gemma4 import costs
from g4lab.gemma4.specs import FULL, NAMES, SLIDING, spec

if TYPE_CHECKING:
    import pandas as pd


def models_frame() -> pd.DataFrame:
    """One row per model: parameters, bf16 weights (GB = 1e9 bytes), layers by kind, heads, bf16 KV bytes per token."""
    import pandas as pd

    return pd.DataFrame([_model_row(name) for name in NAMES]).set_index("model")


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
        "weights_gb": 2 * costs.total_parameters(s) / 1e9,
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
