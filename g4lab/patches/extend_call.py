"""A call of SGLang's extend attention, and what of it g4lab's kernel does not take."""

from __future__ import annotations

import inspect
import pkgutil
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

FORWARD = "sglang.kernels.ops.attention.extend_attention.extend_attention_fwd"


class ExtendCall(NamedTuple):
    """The arguments of SGLang 0.5.21's `extend_attention_fwd`, by its names and in its order; 0.5.17 has all but the
    last two."""

    q_extend: torch.Tensor
    k_extend: torch.Tensor
    v_extend: torch.Tensor
    o_extend: torch.Tensor
    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    custom_mask: torch.Tensor | None
    is_causal: bool
    mask_indptr: torch.Tensor | None
    max_len_extend: int
    k_scale: float
    v_scale: float
    sm_scale: float | None = None
    logit_cap: float = 0.0
    skip_prefix_custom_mask: bool = True
    sliding_window_size: int = -1
    sinks: torch.Tensor | None = None
    window_kv_offsets: torch.Tensor | None = None
    xai_temperature_len: int = -1
    lse_extend: torch.Tensor | None = None
    skip_prefix: bool = False
    skip_extend: bool = False
    page_size: int = 1
    score_mod: Any = None
    aux_tensors: Any = None
    extend_seq_lens_cpu: Any = None
    identity_kv_indices: bool = False

    @property
    def window(self) -> int | None:
        """Keys that a query sees before its own, or None: SGLang takes 0 for no window, too."""
        return self.sliding_window_size if self.sliding_window_size > 0 else None

    @property
    def head_dim(self) -> int:
        """Of queries and keys; values may have another in models that are not Gemma-4."""
        return self.q_extend.shape[-1]

    def launch(self) -> dict[str, Any]:
        """What `pick_tile` goes by. max_prefix is no less than the longest prefix: their sum, or a graph's buffer."""
        return {
            "head_dim": self.head_dim,
            "window": self.window,
            "batch": self.qo_indptr.shape[0] - 1,
            "max_len_extend": self.max_len_extend,
            "max_prefix": self.kv_indices.shape[0],
            "group": self.q_extend.shape[1] // self.k_extend.shape[1],
        }


def other_arguments() -> str | None:
    """How the arguments of the installed SGLang's function differ from ExtendCall's, or None; None also without one,
    which the plugin says itself. Optional ones may be missing at the end."""
    try:
        found = list(inspect.signature(pkgutil.resolve_name(FORWARD)).parameters)
    except (ImportError, AttributeError):
        return None
    ours = list(ExtendCall._fields)
    if found == ours[: len(found)] and len(found) >= len(ours) - len(ExtendCall._field_defaults):
        return None
    return f"this SGLang's extend_attention_fwd differs in {sorted(set(found) ^ set(ours)) or 'their order'}"


def cannot_take(call: ExtendCall) -> str | None:
    """Why g4lab's extend attention cannot stand in for SGLang's in this call, or None."""
    from g4lab.kernels.checks import DTYPES

    asked = {
        "attention that is not causal": not call.is_causal,
        "attention sinks": call.sinks is not None,
        "a temperature by position": call.xai_temperature_len > 0,
        "a score_mod": call.score_mod is not None or call.aux_tensors is not None,
        "log-sum-exps for the caller": call.lse_extend is not None,
        "a part of the keys only": call.skip_prefix or call.skip_extend,
        "a prefix without slots": call.identity_kv_indices,
        "a scaled KV cache": call.k_scale != 1 or call.v_scale != 1,
    }
    for what, there in asked.items():
        if there:
            return what
    q, pool = call.q_extend, (call.k_buffer, call.v_buffer)
    tensors = (call.k_extend, call.v_extend, call.o_extend, *pool)
    if any(x.dtype != q.dtype for x in tensors) or q.dtype not in DTYPES:
        return f"dtypes {', '.join(sorted({str(x.dtype) for x in (q, *tensors)}))}"
    if any(x.shape[-1] != call.head_dim for x in tensors) or call.head_dim not in range(16, 513, 16):
        return f"head dims {', '.join(map(str, sorted({x.shape[-1] for x in (q, *tensors)})))}"
    if any(x.ndim != 3 or x.stride(2) != 1 for x in (q, *tensors)):
        return "a layout that is not [tokens, heads, head_dim]"
    return None
