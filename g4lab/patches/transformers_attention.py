"""g4lab's extend attention as transformers' attention implementation "g4lab": prefill, and decode with a dense cache.

    transformers_attention.register()
    model.set_attn_implementation("g4lab")        # or from_pretrained(..., attn_implementation="g4lab")

A dense cache [B, Hkv, K, D] is read where it lies, as the kernel's pool: position p of sequence b is the slot
b * Hkv * K + p of D numbers, with K slots from head to head. Padding on the left needs no copy either: a row of the
batch becomes two sequences, its padding and its tokens, and the padding's keys are the padding's prefix.

transformers' sliding_window counts the query's own key, the kernel's window does not.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.patches.counting import count

if TYPE_CHECKING:
    import torch

NAME = "g4lab"
_BEFORE = "_g4lab_attention_before"


def register() -> None:
    """Make "g4lab" known to transformers, as an attention implementation and as its kind of mask."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, padding)


def padding(
    batch_size: int,
    q_length: int,
    kv_length: int,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = False,
    config=None,
    **kwargs,
) -> torch.Tensor | None:
    """In place of a mask: how many of each row's kv_length keys are padding, [B], or None for none at all.

    Looks at the mask on the host once for each forward pass and kind of layer.

    Raises:
        BadInput: padding that is not on the left, or anything beyond causality, window and padding, which transformers
            marks by allow_is_causal_skip=False: image blocks, packed sequences, static caches, other mask functions.
    """
    import torch

    if not allow_is_causal_skip or getattr(config, "attention_chunk_size", None):
        what = "a mask of causality, sliding window and padding alone, and no static cache"
        raise bad(
            "attention_mask", "another kind of mask", f"{what} (set_attn_implementation('sdpa') takes the others)"
        )
    if attention_mask is None or attention_mask.all():
        return None
    total = kv_offset + kv_length
    if attention_mask.shape != (batch_size, total):
        raise bad("attention_mask", tuple(attention_mask.shape), f"shape {(batch_size, total)}, a value for each token")
    padded = total - attention_mask.sum(1)
    if not (attention_mask == (torch.arange(total, device=padded.device) >= padded[:, None])).all():
        raise bad("attention_mask", "zeros after a one", "padding on the left only")
    return (padded - kv_offset).clamp(min=0)


def attend(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Stands beside transformers' sdpa_attention_forward: query [B, Hq, S, D], key and value [B, Hkv, K, D] -> out
    [B, S, Hq, D] and no weights. The last S of the K keys are the queries' own; attention_mask is what `padding` gave.

    Raises:
        BadInput: dropout, sinks, gradients, attention that is not causal, a mask of another make, and what
            `extend_attention` does not take.
    """
    from g4lab.kernels.extend_attention import extend_attention

    _check(module, query, key, attention_mask, dropout, kwargs)
    batch, num_q_heads, new, head_dim = query.shape
    past = key.shape[2] - new
    k, v = (x[:, :, past:].transpose(1, 2).reshape(batch * new, -1, head_dim) for x in (key, value))
    pools, stride = _pools(key, value) if past else ((k, v), 0)
    lengths = _lengths(batch, new, past, query.device)
    if attention_mask is not None:
        lengths = _split(*lengths, attention_mask, new, past)
    count("extend_attention")
    out = extend_attention(
        query.transpose(1, 2).reshape(batch * new, num_q_heads, head_dim),
        k,
        v,
        *pools,
        *lengths,
        _slots(batch, past, stride, query.device),
        max_len_extend=new,
        max_prefix=past,
        sm_scale=head_dim**-0.5 if scaling is None else scaling,
        window=None if sliding_window is None else sliding_window - 1,
        logit_cap=softcap or 0.0,
    )
    return out.view(batch, new, num_q_heads, head_dim), None


def switch_on(text_model) -> None:
    """Let a transformers Gemma4TextModel attend by "g4lab"; `switch_off` takes back what was there before."""
    register()
    vars(text_model)[_BEFORE] = text_model.config._attn_implementation
    text_model.set_attn_implementation(NAME)


def switch_off(text_model) -> None:
    text_model.set_attn_implementation(vars(text_model).pop(_BEFORE))


def is_on(text_model) -> bool:
    """Whether `switch_on` was called for it."""
    return _BEFORE in vars(text_model)


def _check(module, query, key, attention_mask, dropout, options) -> None:
    import torch

    if dropout:
        raise bad("dropout", dropout, "0: g4lab's attention is for inference")
    if torch.is_grad_enabled() and query.requires_grad:
        raise bad("query", "a tensor that asks for gradients", "a forward pass under torch.no_grad()")
    if not getattr(module, "is_causal", True) or options.get("is_causal") is False:
        raise bad("module", type(module).__name__, "causal attention (vision and audio towers are not)")
    if options.get("s_aux") is not None:
        raise bad("s_aux", "attention sinks", "none")
    if attention_mask is not None and attention_mask.ndim != 1:
        raise bad(
            "attention_mask", tuple(attention_mask.shape), "[B, tokens] given to the model, not a mask made for it"
        )
    if key.shape[2] < query.shape[2]:
        raise bad("key", tuple(key.shape), f"at least the {query.shape[2]} keys of the queries themselves")


def _pools(key, value):
    """Both as [slots, Hkv, D], and how many slots lie between two sequences; a copy only of an odd layout."""
    if any(x.stride(3) != 1 or x.stride(0) % x.stride(2) for x in (key, value)) or key.stride() != value.stride():
        key, value = key.contiguous(), value.contiguous()
    batch, heads, keys, head_dim = key.shape
    stride = key.stride(0) // key.stride(2)
    shape, strides = ((batch - 1) * stride + keys, heads, head_dim), (key.stride(2), key.stride(1), 1)
    return (key.as_strided(shape, strides), value.as_strided(shape, strides)), stride


@functools.lru_cache(maxsize=4)  # the layers of one forward pass share them
def _lengths(batch: int, new: int, past: int, device):
    """qo_indptr and kv_indptr, [B + 1]."""
    import torch

    rows = torch.arange(batch + 1, device=device)
    return rows * new, rows * past


@functools.lru_cache(maxsize=4)
def _slots(batch: int, past: int, stride: int, device):
    """kv_indices: the slots of the first `past` keys of each row."""
    import torch

    return (torch.arange(batch, device=device)[:, None] * stride + torch.arange(past, device=device)).flatten()


def _split(qo_indptr, kv_indptr, padded, new: int, past: int):
    """qo_indptr and kv_indptr of twice the sequences: of each row its padding, then its tokens."""
    return _halved(qo_indptr, (padded - past).clamp(min=0, max=new)), _halved(kv_indptr, padded.clamp(max=past))


def _halved(indptr, firsts):
    """[2 B + 1]: each sequence cut in two after its `firsts` first members."""
    import torch

    return torch.cat([indptr[:1], torch.stack([indptr[:-1] + firsts, indptr[1:]], dim=1).flatten()])
