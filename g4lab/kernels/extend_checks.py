"""What extend attention asks of its arguments; in debug mode also of what they hold."""

import os

import torch

from g4lab.errors import bad
from g4lab.kernels.checks import DTYPES

INTEGERS = (torch.int32, torch.int64)


def check_arguments(
    q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, max_len_extend, sm_scale, window, logit_cap,
    custom_mask, mask_indptr, window_kv_offsets, splits, out,
) -> None:  # fmt: skip
    """Raises BadInput unless shapes, strides, dtypes, devices and options are those that extend_attention takes."""
    if q.ndim != 3 or not 16 <= q.shape[2] <= 512 or q.shape[2] % 16:
        raise bad("q", tuple(q.shape), "shape [tokens, heads, head_dim], head_dim a multiple of 16 from 16 to 512")
    if q.dtype not in DTYPES:
        raise bad("q", q.dtype, "bfloat16, float16 or float32")
    tokens, num_q_heads, head_dim = q.shape
    if k.ndim != 3 or k.shape[1] < 1 or num_q_heads % k.shape[1]:
        raise bad("k", tuple(k.shape), f"shape [tokens, KV heads, head_dim], KV heads a divisor of {num_q_heads}")
    fresh, pool = (tokens, k.shape[1], head_dim), (k.shape[1], head_dim)
    for name, tensor in (("k", k), ("v", v)):
        if tuple(tensor.shape) != fresh:
            raise bad(name, tuple(tensor.shape), f"shape {fresh}, as q and k have it")
    for name, tensor in (("k_buffer", k_buffer), ("v_buffer", v_buffer)):
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != pool:
            raise bad(name, tuple(tensor.shape), f"shape [slots, {pool[0]}, {pool[1]}]")
    if out is not None and tuple(out.shape) != tuple(q.shape):
        raise bad("out", tuple(out.shape), f"q's shape {tuple(q.shape)}")
    named = {"k": k, "v": v, "k_buffer": k_buffer, "v_buffer": v_buffer, "out": q if out is None else out}
    for name, tensor in named.items():
        if tensor.dtype != q.dtype:
            raise bad(name, tensor.dtype, f"q's dtype {q.dtype}")
    for name, tensor in (named | {"q": q}).items():
        if tensor.shape[0] and tensor.stride(2) != 1:
            raise bad(name, f"stride {tensor.stride(2)}", "stride 1 in the last dimension")
    named |= {"qo_indptr": qo_indptr, "kv_indptr": kv_indptr, "kv_indices": kv_indices}
    for name in ("qo_indptr", "kv_indptr", "kv_indices"):
        if named[name].ndim != 1 or named[name].dtype not in INTEGERS or not named[name].is_contiguous():
            raise bad(name, f"{tuple(named[name].shape)} {named[name].dtype}", "a contiguous vector, int32 or int64")
    if qo_indptr.shape[0] < 1 or kv_indptr.shape[0] < qo_indptr.shape[0]:
        raise bad("kv_indptr", kv_indptr.shape[0], f"a value for each of qo_indptr's {qo_indptr.shape[0]}, at least 1")
    if custom_mask is not None:
        if mask_indptr is None:
            raise bad("mask_indptr", None, "where each sequence's part of custom_mask begins")
        if custom_mask.dtype not in (torch.bool, torch.uint8) or not custom_mask.is_contiguous():
            raise bad("custom_mask", custom_mask.dtype, "a contiguous tensor of bool or uint8")
        named |= {"custom_mask": custom_mask, "mask_indptr": mask_indptr}
        if window_kv_offsets is not None:
            named["window_kv_offsets"] = window_kv_offsets
    for name, tensor in named.items():
        if tensor.device != q.device:
            raise bad(name, f"device {tensor.device}", f"q's device {q.device}")
    if window is not None and window < 1:
        raise bad("window", window, "None for no window, or at least 1 key before the query")
    if not sm_scale > 0:
        raise bad("sm_scale", sm_scale, "above 0")
    if logit_cap < 0:
        raise bad("logit_cap", logit_cap, "0 for none, or above")
    if max_len_extend < 0 or (tokens and max_len_extend < 1):
        raise bad("max_len_extend", max_len_extend, "the most new tokens of one sequence")
    if splits is not None and splits < 1:
        raise bad("splits", splits, "at least 1")


def debugging(tensor) -> bool:
    """Whether contents are checked by default: on a CPU, where it costs nothing, or where $G4LAB_DEBUG is 1."""
    return tensor.device.type == "cpu" or os.environ.get("G4LAB_DEBUG") == "1"


def check_lengths(qo_indptr, kv_indptr, kv_indices, tokens: int, max_len_extend: int) -> None:
    """Raises BadInput unless both indptrs never fall, cover what they index, and no sequence has more
    than max_len_extend new tokens."""
    for name, indptr, limit, what in (
        ("qo_indptr", qo_indptr, tokens, "q"),
        ("kv_indptr", kv_indptr[: qo_indptr.shape[0]], kv_indices.shape[0], "kv_indices"),
    ):
        steps = indptr.diff()
        if (steps < 0).any():
            b = int((steps < 0).nonzero()[0])
            raise bad(name, indptr[b : b + 2].tolist(), f"values that do not fall (sequence {b})")
        if int(indptr[-1]) > limit:
            raise bad(name, int(indptr[-1]), f"at most {limit}, the length of {what}, at its end")
    lengths = qo_indptr.diff()
    if lengths.numel() and int(lengths.max()) > max_len_extend:
        b = int(lengths.argmax())
        raise bad("max_len_extend", max_len_extend, f"at least {int(lengths[b])}, the new tokens of sequence {b}")


def check_pages(kv_indptr, kv_indices, slots: int) -> None:
    """Raises BadInput that names sequence and position of the first slot outside of the buffers."""
    used = kv_indices[int(kv_indptr[0]) : int(kv_indptr[-1])]
    outside = ((used < 0) | (used >= slots)).nonzero()
    if len(outside):
        at = int(outside[0]) + int(kv_indptr[0])
        sequence = int(torch.searchsorted(kv_indptr, at, right=True)) - 1
        position = at - int(kv_indptr[sequence])
        where = f"sequence {sequence}, position {position}"
        raise bad("kv_indices", int(kv_indices[at]), f"a slot from 0 to {slots - 1} ({where})")
