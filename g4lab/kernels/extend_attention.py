"""Attention of new tokens over a paged prefix and over themselves: prefill, chunked prefill, speculative verify.

    out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j]) v[j]     over the keys j that token t sees

The contract is that of SGLang's `extend_attention_fwd`: the prefix of sequence b lies in the pool at
kv_indices[kv_indptr[b] : kv_indptr[b + 1]], its new tokens are rows qo_indptr[b] : qo_indptr[b + 1] of q, k and v. Key
positions run through both, prefix first.

Where it differs from SGLang's kernel (0.5.21):

- The first and the last key that any row of a tile sees are computed before the loops. SGLang's loops start at key 0
  and skip what the window hides by a branch around the loads, and that branch keeps Triton from pipelining them.
- A block of keys that every row sees in full is computed without masks; only blocks at the window's edge, at the
  prefix's ragged end and on the diagonal are masked.
- The query heads of one KV head are rows of one tile: keys and values are read once for all of them, and four draft
  tokens of two heads fill eight rows instead of four.
- Tiles are found by a scan over qo_indptr, so ragged batches launch no empty tiles but one per sequence at most, and a
  wrong max_len_extend cannot cut a sequence short.
- Where tiles are too few for the GPU, the keys of each are split among programs, and a second launch combines them.

Left out until a GPU says that they pay: TMA (a page is one token, so a prefix is gathered row by row, which sm_90's TMA
cannot do; the new tokens' keys it could) and warp specialisation.

Rounding: scores and sums in fp32, exp2 with log2(e) folded into the scale, softmax weights rounded to the values' dtype
before the second product, one rounding at the end. fp32 inputs are multiplied in fp32 (no tf32).
"""

import functools

import torch
import triton

from g4lab.kernels import ieee
from g4lab.kernels.compile_case import CompileCase
from g4lab.kernels.extend_checks import check_arguments, check_lengths, check_pages, debugging
from g4lab.kernels.extend_kernel import _combine_kernel, _extend_kernel
from g4lab.kernels.extend_reference import extend_attention_reference
from g4lab.kernels.extend_tiles import ExtendTile, pick_splits, pick_tile

__all__ = ["ExtendTile", "compile_case", "extend_attention", "extend_attention_reference", "pick_splits", "pick_tile"]

LOG2E = 1.4426950408889634
SEQUENCES = 64  # that one step of the scan over qo_indptr looks at


def extend_attention(
    q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, *, max_len_extend, sm_scale=1.0, window=None,
    logit_cap=0.0, custom_mask=None, mask_indptr=None, skip_prefix_custom_mask=True, window_kv_offsets=None,
    max_prefix=None, tile=None, splits=None, out=None, debug=None,
):  # fmt: skip
    """Attention of new tokens over their sequence's cached prefix and themselves; safe inside a CUDA graph.

    Args:
        q: [T, Hq, D] bf16, fp16 or fp32, the new tokens of all sequences one after another; T may be 0.
        k, v: [T, Hkv, D] of the same dtype; Hkv divides Hq. D is a multiple of 16 from 16 to 512. Of q, k, v and the
            buffers the last dimension is contiguous, the others may be strided.
        k_buffer, v_buffer: [slots, Hkv, D] of the same dtype, the pool.
        qo_indptr, kv_indptr: [B + 1] int32 or int64, where each sequence's new tokens and its part of kv_indices begin.
        kv_indices: [at least kv_indptr[B]] int32 or int64, the slot of each cached token, in order.
        max_len_extend: the most new tokens of one sequence.
        sm_scale: above 0; Gemma-4 uses 1.
        window: how many keys before its own a query sees (SGLang's sliding_window_size), at least 1; None for all.
        logit_cap: scores become cap * tanh(score / cap) where above 0.
        custom_mask: bool or uint8, flat; sequence b's part begins at mask_indptr[b] and is [its new tokens,
            window_kv_offsets[b] + its keys]. It takes causality's place; the window holds beside it.
        skip_prefix_custom_mask: every new token sees the prefix (but for the window), whatever the mask says.
        window_kv_offsets: [B], keys that the mask has columns for before the first one in kv_indices; default 0.
        max_prefix: the most cached tokens of one sequence, where known: it decides whether to split.
        tile, splits: an ExtendTile, and into how many parts to split the keys; default `pick_tile`, `pick_splits`.
        out: [T, Hq, D] to write to, last dimension contiguous.
        debug: check slots and lengths before the launch, which on a GPU waits for it. Default: on a CPU, or where
            $G4LAB_DEBUG is 1.

    Returns:
        [T, Hq, D] in q's dtype: out, or a new tensor. 0 for a query that sees no key.

    Raises:
        BadInput: a shape, stride, dtype, device or option it cannot take; with debug also a slot outside of the
            buffers (named by sequence and position), lengths that do not add up, or a max_len_extend too small.
    """
    check_arguments(
        q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, max_len_extend, sm_scale, window, logit_cap,
        custom_mask, mask_indptr, window_kv_offsets, splits, out,
    )  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    num_tokens, num_q_heads, head_dim = q.shape
    num_sequences = qo_indptr.shape[0] - 1
    if num_tokens == 0 or num_sequences == 0:
        return out
    if debugging(q) if debug is None else debug:
        check_lengths(qo_indptr, kv_indptr, kv_indices, num_tokens, max_len_extend)
        check_pages(kv_indptr, kv_indices, min(k_buffer.shape[0], v_buffer.shape[0]))

    num_kv_heads = k.shape[1]
    group = num_q_heads // num_kv_heads
    max_prefix = kv_indices.shape[0] if max_prefix is None else max_prefix
    tile = tile or _tile(q, head_dim, window, num_sequences, max_len_extend, max_prefix, group)
    grid = (num_tokens * group // tile.block_m + num_sequences, num_kv_heads)
    if splits is None:
        keys = max_prefix + max_len_extend if window is None else min(max_prefix, window) + max_len_extend
        tiles = min(grid[0], num_sequences * triton.cdiv(max_len_extend * group, tile.block_m))
        splits = 1 if ieee.INTERPRETED else pick_splits(tile, tiles * num_kv_heads, keys, _processors(q.device))

    parts, lse, strides = out, out, (0, out.stride(0), out.stride(1))
    if splits > 1:
        parts = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
        lse = torch.empty(parts.shape[:3], dtype=torch.float32, device=q.device)
        strides = parts.stride()[:3]
    masked = custom_mask is not None
    if masked and custom_mask.dtype == torch.bool:
        custom_mask = custom_mask.view(torch.uint8)
    with ieee.launching(_extend_kernel):
        _extend_kernel[(*grid, splits)](
            q, k, v, parts, lse, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices,
            custom_mask, mask_indptr, window_kv_offsets, num_sequences, *scales(sm_scale, logit_cap),
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *strides, *k_buffer.stride()[:2], *v_buffer.stride()[:2],
            **constants(head_dim, group, window, logit_cap, tile), MASK=masked,
            MASK_PREFIX=masked and not skip_prefix_custom_mask, MASK_OFFSETS=masked and window_kv_offsets is not None,
            SPLIT=splits > 1, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    if splits > 1:
        rows = num_tokens * num_q_heads
        per_program = 64 if ieee.INTERPRETED else 4
        with ieee.launching(_combine_kernel):
            _combine_kernel[(triton.cdiv(rows, per_program),)](
                parts, lse, out, rows, splits, out.stride(0), out.stride(1), HEADS=num_q_heads, D=head_dim,
                COLS=triton.next_power_of_2(head_dim), ROWS=per_program,
            )  # fmt: skip
    return out


def scales(sm_scale: float, logit_cap: float) -> tuple[float, float]:
    """What the kernel multiplies scores with before exp2, and before that in the exponent of the cap's tanh."""
    return (logit_cap * LOG2E, 2 * LOG2E * sm_scale / logit_cap) if logit_cap > 0 else (sm_scale * LOG2E, 0.0)


def constants(head_dim: int, group: int, window: int | None, logit_cap: float, tile: ExtendTile) -> dict:
    """The compile-time arguments that shape and tile decide; a head dim that is no power of two has two parts."""
    main = 1 << (head_dim.bit_length() - 1)
    tail = triton.next_power_of_2(max(16, head_dim - main)) if head_dim > main else 0
    return {
        "D": head_dim, "MAIN": main, "TAIL": tail, "GROUP": group, "WINDOW": -1 if window is None else window,
        "CAP": logit_cap > 0, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "STEP": SEQUENCES,
    }  # fmt: skip


def _tile(q, head_dim, window, batch, max_len_extend, max_prefix, group) -> ExtendTile:
    if ieee.INTERPRETED:  # a program is a NumPy call there: few large ones
        return ExtendTile(min(128, max(16, triton.next_power_of_2(max_len_extend * group))), 64, 4, 1)
    if q.dtype == torch.float32:  # for checks, not for speed: the tables' tiles are too large for it
        return ExtendTile(16, 16, 4, 1)
    return pick_tile(
        arch=arch_of(q.device), head_dim=head_dim, window=window, batch=batch, max_len_extend=max_len_extend,
        max_prefix=max_prefix, group=group,
    )  # fmt: skip


@functools.cache
def arch_of(device: torch.device) -> str:
    """The architecture whose rules a CUDA device goes by: "sm_90", "sm_80", "sm_89" (also for 8.6), ..."""
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 6): "sm_89", (8, 9): "sm_89"}.get((major, minor), f"sm_{major}0")


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


_A_TILE = ExtendTile(32, 64, 4, 2)


def compile_case(
    *, dtype="bf16", head_dim=256, window=None, tile=_A_TILE, group=2, logit_cap=0.0,
    custom_mask=False, split=False,
):  # fmt: skip
    """As SGLang would call it: int64 qo_indptr and slots, int32 kv_indptr, strides that 16 divides."""
    tensors = ("q_ptr", "k_ptr", "v_ptr", "k_buffer", "v_buffer")
    signature = dict.fromkeys(tensors, f"*{dtype}:16") | dict.fromkeys(("qo_indptr", "kv_indices"), "*i64:16")
    signature |= dict.fromkeys(("out_ptr", "lse_ptr"), "*fp32:16" if split else f"*{dtype}:16")
    signature |= {"kv_indptr": "*i32:16", "num_sequences": "i32", "scale": "fp32", "cap_scale": "fp32"}
    names = ("qt", "qh", "kt", "kh", "vt", "vh", "ot", "oh", "kbs", "kbh", "vbs", "vbh")
    signature |= {f"stride_{name}": "i32:16" for name in names} | {"stride_os": "i32:16" if split else "i32"}
    constants_of = constants(head_dim, group, window, logit_cap, tile)
    constants_of |= {"MASK": custom_mask, "MASK_PREFIX": False, "MASK_OFFSETS": custom_mask, "SPLIT": split}
    if custom_mask:
        signature |= {"mask_ptr": "*u8:16", "mask_indptr": "*i64:16", "mask_offsets": "*i32:16"}
    else:
        constants_of |= dict.fromkeys(("mask_ptr", "mask_indptr", "mask_offsets"))
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return CompileCase(_extend_kernel, signature, constants_of, options)
