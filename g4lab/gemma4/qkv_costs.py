"""What an engine that packs Q, K and V into one projection computes although no layer of Gemma-4 needs it.

SGLang 0.5.21 gives every layer a packed projection of Q, K and V (`QKVParallelLinear` in srt/models/gemma4_causal.py).
In K=V layers its V rows are a copy of K's (`should_dup_k_to_v` in load_weights), so K's projection is computed twice.
In layers that read another layer's KV the K and V rows are computed and thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.gemma4.costs import active_parameters, operation_costs
from g4lab.gemma4.specs import CHECKPOINTS, Layer, QKVMode, Spec, spec

if TYPE_CHECKING:
    import pandas as pd

# Of K and V, how many projections a layer needs; the packed projection has both.
_NEEDED = {QKVMode.QKV: 2, QKVMode.QK: 1, QKVMode.Q: 0}


@dataclass(frozen=True)
class Unneeded:
    """Rows of the packed projections that need not be computed, summed over a model's layers on one rank.

    weight_bytes: kept in memory and read in every step. activation_bytes and flops: of `tokens` tokens; the GEMM writes
    the rows, and in K=V layers the norm reads them.
    """

    rows: int
    weight_bytes: float
    activation_bytes: float
    flops: float


def unneeded_heads(layer: Layer, tp: int = 1) -> int:
    """Heads of K and V on one of `tp` ranks whose projection is computed twice or thrown away. BadInput as kv_heads."""
    return (2 - _NEEDED[layer.qkv_mode]) * layer.kv_heads(tp)


def unneeded(spec: Spec, *, tokens: int = 1, dtype_bytes: float = 2, tp: int = 1) -> Unneeded:
    """The sum over all layers for a step over `tokens` tokens.

    Raises:
        BadInput: negative `tokens`, or a `tp` that the heads cannot be split by.
    """
    if tokens < 0:
        raise bad("tokens", tokens, "zero or more")
    rows = normed = 0
    for layer in spec.layers:
        size = unneeded_heads(layer, tp) * layer.head_dim
        rows += size
        normed += size if layer.qkv_mode == QKVMode.QK else 0
    return Unneeded(
        rows=rows,
        weight_bytes=rows * spec.hidden_size * dtype_bytes,
        # The norm of a K=V layer can write V from the row of K that it has read.
        activation_bytes=tokens * dtype_bytes * (rows + normed),
        flops=2.0 * rows * spec.hidden_size * tokens,
    )


def unneeded_frame(*, batch: int = 1, context: int = 8192) -> pd.DataFrame:
    """One row for each checkpoint: the unneeded rows in one decode step of `batch` sequences at `context` tokens.

    weights_mb (1e6 bytes) and mflop_per_token, and their shares in percent: of the packed projections' weights, of all
    bytes that the step moves (g4lab.gemma4.costs and these), and of the FLOPs that a token needs in weights.
    """
    import pandas as pd

    rows = []
    for name in CHECKPOINTS:
        s = spec(name)
        found = unneeded(s, tokens=batch)
        step = sum(cost.bytes for cost in operation_costs(s, context=context, batch=batch)) + found.weight_bytes
        packed = sum((layer.num_q_heads + 2 * layer.num_kv_heads) * layer.head_dim for layer in s.layers)
        rows.append(
            {
                "model": name,
                "mode": " and ".join({layer.qkv_mode.value for layer in s.layers if unneeded_heads(layer)}),
                "layers": sum(unneeded_heads(layer) > 0 for layer in s.layers),
                "rows": found.rows,
                "weights_mb": found.weight_bytes / 1e6,
                "mflop_per_token": found.flops / batch / 1e6,
                "of_qkv_weights_pct": 100 * found.rows / packed,
                "of_step_bytes_pct": 100 * found.weight_bytes / step,
                "of_token_flops_pct": 100 * found.flops / batch / (2 * active_parameters(s)),
            }
        )
    return pd.DataFrame(rows).set_index("model")
