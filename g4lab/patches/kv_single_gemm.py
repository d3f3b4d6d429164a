"""Which rows of the packed q, k, v weight a Gemma-4 layer needs, and the projection by those rows alone.

K=V layers (attention_k_eq_v, full attention): SGLang 0.5.21 loads K's weights into V's shard, too, so that the packed
GEMM computes K's projection twice (vLLM issue #41944 asks for the same cut). The rows of q and k, a contiguous slice of
this rank's weight, are enough: V's shard is never read then, though its memory is not freed. Layers that read another
layer's KV (KV-shared layers, MTP assistants) throw K and V away, so there the rows of q are enough.

With --load-format dummy V's shard holds other numbers than K's: this gives the model's own V, the norm of K's
projection, where SGLang's dummy model would show another one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rows_needed(attn, shared: bool) -> int | None:
    """How many leading rows of the packed weight do for this layer: q's, or q's and k's. None where it needs them all,
    or where they cannot be taken apart: quantised or AMX-packed weights, a bias, gathered outputs, LoRA wrappers."""
    from sglang.srt.layers.linear import QKVParallelLinear
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

    k_is_v = getattr(attn.config, "attention_k_eq_v", False) and attn.sliding_window == -1
    if not (shared or k_is_v):
        return None
    projection = attn.qkv_proj
    plain = (
        type(projection) is QKVParallelLinear
        and type(projection.quant_method) is UnquantizedLinearMethod
        and projection.bias is None
        and not projection.gather_output
        and not getattr(projection, "use_intel_amx_backend", False)
    )
    if not plain:
        return None
    return attn.q_size if shared else attn.q_size + attn.kv_size


def project(attn, hidden_states: torch.Tensor, rows: int) -> torch.Tensor:
    """[T, H] -> [T, rows], by SGLang's own choice of GEMM on a view of the first `rows` rows."""
    projection = attn.qkv_proj
    return projection.quant_method.apply(SimpleNamespace(weight=projection.weight[:rows]), hidden_states)
