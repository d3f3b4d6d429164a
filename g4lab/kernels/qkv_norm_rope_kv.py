"""Norm of Q, K and V, rotary embedding of Q and K, and the write of K and V into the paged cache, in one launch.

    q[t, h] = rope(norm(q[t, h]) * q_weight, positions[t])
    k[t, h] = rope(norm(k[t, h]) * k_weight, positions[t])      k_cache[cache_loc[t], h] = k[t, h]
    v[t, h] = norm(v[t, h])                                     v_cache[cache_loc[t], h] = v[t, h]

    rope(x, p) = (x1 * cos[p] - x2 * sin[p], x2 * cos[p] + x1 * sin[p])     x1, x2: the halves of a head (neox)

It replaces SGLang's gemma_qkv_rmsnorm, its rotary kernel and its write of the cache. Gemma-4's "proportional" rotary
embedding of the full-attention layers turns a quarter of a head and pads the frequencies with zeros: cos 1 and sin 0
leave the rest alone, so it needs no code of its own.

Rounding. Every step rounds as its own launch would: the norm to the tensors' dtype, the rotation to it again, the
cache's write to the cache's dtype as the installed PyTorch converts (beyond e4m3's 448: 448 since 2.12, before it NaN).
rope_rounding "fp32" turns in fp32 and rounds once (SGLang's CUDA kernel, whose compiler may contract a product and the
sum into one fma; this one does not). "eager" rounds cos, sin and each product to the dtype (transformers, and SGLang
without a GPU). For fp32 the two are one.
"""

import torch
import triton
import triton.language as tl

from g4lab.errors import bad
from g4lab.kernels import ieee, rms
from g4lab.kernels.compile_case import CompileCase
from g4lab.kernels.qkv_norm import (
    QKVMode,
    check_heads,
    load_heads,
    pick_launch,
    pointers,
    programs,
    qkv_rmsnorm_reference,
    scaled,
    store_heads,
    strides,
)

ROPE_ROUNDINGS = ("fp32", "eager")
FP8 = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def rope_reference(x, positions, cos_sin_cache, num_heads, *, rounding="fp32"):
    """Neox rotary embedding of x [T, num_heads * D] at positions [T], operator by operator; a new tensor.

    cos_sin_cache [P, D]: D / 2 cosines, then D / 2 sines of each position.
    """
    cos, sin = cos_sin_cache[positions].unsqueeze(-2).chunk(2, dim=-1)
    x1, x2 = x.unflatten(-1, (num_heads, -1)).chunk(2, dim=-1)
    if rounding == "eager":
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    else:
        x1, x2, cos, sin = x1.float(), x2.float(), cos.float(), sin.float()
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype).flatten(-2)


def write_cache_reference(x, cache, cache_loc):
    """cache[cache_loc[t]] = x[t] in the cache's dtype, x [T, heads * D], where cache_loc[t] is a slot (0 or more)."""
    kept = cache_loc >= 0
    values = x[kept].view(-1, *cache.shape[1:]).to(cache.dtype)
    cache.view(torch.uint8)[cache_loc[kept]] = values.view(torch.uint8)


def qkv_norm_rope_kv_reference(
    q, k, v, q_weight, k_weight, positions, cos_sin_cache, k_cache, v_cache, cache_loc, *,
    mode, num_q_heads, num_kv_heads, head_dim, eps=1e-6, rope_rounding="fp32", mean_square=rms.mean_square,
):  # fmt: skip
    """The chain of separate steps; arguments and result as `qkv_norm_rope_kv`. Writes the caches, leaves q, k and v."""
    heads = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    q, k, v = qkv_rmsnorm_reference(q, k, v, q_weight, k_weight, mode=mode, eps=eps, mean_square=mean_square, **heads)
    q = rope_reference(q, positions, cos_sin_cache, num_q_heads, rounding=rope_rounding)
    if mode == QKVMode.Q:
        return q, None, None
    k = rope_reference(k, positions, cos_sin_cache, num_kv_heads, rounding=rope_rounding)
    write_cache_reference(k, k_cache, cache_loc)
    write_cache_reference(v, v_cache, cache_loc)
    return q, k, v


@triton.jit
def _rotated(low, high, cos_sin_ptr, position, dtype: tl.constexpr, HALF: tl.constexpr, EAGER: tl.constexpr):
    """Both halves turned by their row's position [ROWS, 1]; rounded to `dtype`, held in fp32."""
    at = cos_sin_ptr + position * (2 * HALF) + tl.arange(0, HALF)[None, :]
    cos, sin = ieee.widen(tl.load(at)), ieee.widen(tl.load(at + HALF))
    if EAGER:
        cos, sin = ieee.round_to(cos, dtype), ieee.round_to(sin, dtype)
        new_low = ieee.round_to(low * cos, dtype) - ieee.round_to(high * sin, dtype)
        new_high = ieee.round_to(high * cos, dtype) + ieee.round_to(low * sin, dtype)
    else:
        new_low, new_high = low * cos - high * sin, high * cos + low * sin
    return ieee.round_to(new_low, dtype), ieee.round_to(new_high, dtype)


@triton.jit
def _write_cache(ptr, loc_ptr, stride, row_offset, low, high, token, there, HALF: tl.constexpr, FP8: tl.constexpr):
    """Write rows of heads into the slots of their tokens; `row_offset` is the head's offset within a slot."""
    slot = tl.load(loc_ptr + token, mask=there, other=-1).to(tl.int64)
    offset, there = slot * stride + row_offset, there & (slot >= 0)
    if FP8 == "e4m3":
        largest: tl.constexpr = ieee.E4M3_LARGEST
        low, high = ieee.fp8_bits(low, 3, 7, largest), ieee.fp8_bits(high, 3, 7, largest)
    elif FP8 == "e5m2":
        low, high = ieee.fp8_bits(low, 2, 15, 0x7C), ieee.fp8_bits(high, 2, 15, 0x7C)
    store_heads(ptr, offset, low, high, there, HALF)


@triton.jit
def _qkv_norm_rope_kv_kernel(
    q_ptr, k_ptr, v_ptr, q_weight_ptr, k_weight_ptr, positions_ptr, cos_sin_ptr, k_cache_ptr, v_cache_ptr, loc_ptr,
    num_tokens, stride_q, stride_k, stride_v, stride_k_cache, stride_v_cache, eps,
    MODE: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
    EAGER: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    program = tl.program_id(0)
    q_programs = tl.cdiv(num_tokens * HQ, ROWS)
    kv_programs = tl.cdiv(num_tokens * HKV, ROWS)
    if program < q_programs:
        low, high, token, offset, there = load_heads(q_ptr, stride_q, program, num_tokens, HQ, HALF, ROWS)
        low, high = scaled(low, high, rms.head_rrms(low, high, eps, ROWS, HALF), q_weight_ptr, dtype, HALF, True)
        position = tl.load(positions_ptr + token, mask=there, other=0).to(tl.int64)
        low, high = _rotated(low, high, cos_sin_ptr, position, dtype, HALF, EAGER)
        store_heads(q_ptr, offset, low, high, there, HALF)
    elif MODE != "Q":
        first = program - q_programs
        if first < kv_programs:
            low, high, token, offset, there = load_heads(k_ptr, stride_k, first, num_tokens, HKV, HALF, ROWS)
            in_slot = offset - token * stride_k
            r = rms.head_rrms(low, high, eps, ROWS, HALF)
            if MODE == "QK":
                v_low, v_high = scaled(low, high, r, k_weight_ptr, dtype, HALF, False)
                store_heads(v_ptr, token * stride_v + in_slot, v_low, v_high, there, HALF)
                _write_cache(v_cache_ptr, loc_ptr, stride_v_cache, in_slot, v_low, v_high, token, there, HALF, FP8)
            low, high = scaled(low, high, r, k_weight_ptr, dtype, HALF, True)
            position = tl.load(positions_ptr + token, mask=there, other=0).to(tl.int64)
            low, high = _rotated(low, high, cos_sin_ptr, position, dtype, HALF, EAGER)
            store_heads(k_ptr, offset, low, high, there, HALF)
            _write_cache(k_cache_ptr, loc_ptr, stride_k_cache, in_slot, low, high, token, there, HALF, FP8)
        else:
            first -= kv_programs
            low, high, token, offset, there = load_heads(v_ptr, stride_v, first, num_tokens, HKV, HALF, ROWS)
            r = rms.head_rrms(low, high, eps, ROWS, HALF)
            low, high = scaled(low, high, r, k_weight_ptr, dtype, HALF, False)
            store_heads(v_ptr, offset, low, high, there, HALF)
            in_slot = offset - token * stride_v
            _write_cache(v_cache_ptr, loc_ptr, stride_v_cache, in_slot, low, high, token, there, HALF, FP8)


def qkv_norm_rope_kv(
    q, k, v, q_weight, k_weight, positions, cos_sin_cache, k_cache, v_cache, cache_loc, *,
    mode, num_q_heads, num_kv_heads, head_dim, eps=1e-6, rope_rounding="fp32", launch=None,
):  # fmt: skip
    """Normalise q, k and v, turn q and k, and write k and v into the cache, in one launch; safe inside a CUDA graph.

    Args:
        q, k, v, q_weight, k_weight, mode, num_q_heads, num_kv_heads, head_dim, launch: as `qkv_rmsnorm` takes them.
        positions: [T] int32 or int64, each below cos_sin_cache's length (not checked: that would wait for the GPU).
        cos_sin_cache: [P, head_dim] contiguous, cosines then sines; fp32, or the dtype of q.
        k_cache, v_cache: [slots, num_kv_heads, head_dim], slots may lie apart; q's dtype, float8_e4m3fn or
            float8_e5m2 (values are not scaled). None in mode Q.
        cache_loc: [T] int32 or int64, the slot of each token; a negative one is not written. None in mode Q.
        rope_rounding: "fp32" or "eager".

    Returns:
        q, k, v: updated in place, except that mode QK returns a new v [T, num_kv_heads * head_dim].

    Raises:
        BadInput: a shape, stride, dtype, device or option it cannot take.
    """
    mode = check_heads(q, k, v, q_weight, k_weight, mode, num_q_heads, num_kv_heads, head_dim)
    _check_rope(q, positions, cos_sin_cache, head_dim, rope_rounding)
    _check_cache(q, k_cache, v_cache, cache_loc, mode, num_kv_heads, head_dim)
    if mode is QKVMode.QK:
        v = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    num_tokens = q.shape[0]
    if num_tokens == 0:
        return q, k, v
    fp8 = None if mode is QKVMode.Q else FP8.get(k_cache.dtype)
    caches = (q, q) if mode is QKVMode.Q else (k_cache, v_cache)
    if fp8:
        caches = tuple(cache.view(torch.uint8) for cache in caches)
    launch = launch or pick_launch(num_tokens, num_q_heads, interpreted=ieee.INTERPRETED.value)
    with ieee.launching(_qkv_norm_rope_kv_kernel):
        _qkv_norm_rope_kv_kernel[(programs(mode, num_tokens, num_q_heads, num_kv_heads, launch),)](
            *pointers(q, k, v, q_weight, k_weight), positions, cos_sin_cache,
            *caches, positions if cache_loc is None else cache_loc,
            num_tokens, *strides(q, k, v), *(cache.stride(0) for cache in caches), eps,
            MODE=mode.value, HQ=num_q_heads, HKV=num_kv_heads, HALF=head_dim // 2, ROWS=launch.rows,
            EAGER=rope_rounding == "eager", FP8=fp8,
            num_warps=launch.num_warps, **ieee.LAUNCH_OPTIONS,
        )  # fmt: skip
    return q, k, v


def compile_case(
    *, dtype="bf16", cache_dtype=None, mode="QKV", num_q_heads=16, num_kv_heads=8, head_dim=256, rope_rounding="fp32",
    rows=1, num_warps=1,
):  # fmt: skip
    """The kernel as `qkv_norm_rope_kv` launches it on a GPU; cache_dtype: None for dtype, "e4m3" or "e5m2"."""
    cache = f"*{'u8' if cache_dtype else dtype}:16"
    signature = {
        **{f"{name}_ptr": f"*{dtype}:16" for name in ("q", "k", "v", "q_weight", "k_weight")},
        "positions_ptr": "*i64:16",
        "cos_sin_ptr": "*fp32:16",
        "k_cache_ptr": cache,
        "v_cache_ptr": cache,
        "loc_ptr": "*i64:16",
        "num_tokens": "i32",
        **{f"stride_{name}": "i32:16" for name in ("q", "k", "v", "k_cache", "v_cache")},
        "eps": "fp32",
    }
    constants = {"MODE": str(mode), "HQ": num_q_heads, "HKV": num_kv_heads, "HALF": head_dim // 2, "ROWS": rows}
    constants |= {"EAGER": rope_rounding == "eager", "FP8": cache_dtype}
    options = {"num_warps": num_warps, **ieee.LAUNCH_OPTIONS}
    return CompileCase(_qkv_norm_rope_kv_kernel, signature, constants, options)


def _check_indices(name, x, q):
    if tuple(x.shape) != (q.shape[0],) or x.dtype not in (torch.int32, torch.int64):
        raise bad(name, f"{tuple(x.shape)} {x.dtype}", f"[{q.shape[0]}] int32 or int64, one for each token")
    if x.stride(0) != 1 and x.numel() > 1:
        raise bad(name, f"stride {x.stride(0)}", "a contiguous tensor")
    if x.device != q.device:
        raise bad(name, f"device {x.device}", f"q's device {q.device}")


def _check_rope(q, positions, cos_sin_cache, head_dim, rope_rounding):
    _check_indices("positions", positions, q)
    if cos_sin_cache.dim() != 2 or cos_sin_cache.shape[1] != head_dim or not cos_sin_cache.is_contiguous():
        raise bad("cos_sin_cache", tuple(cos_sin_cache.shape), f"a contiguous [positions, {head_dim}]")
    if cos_sin_cache.dtype not in (torch.float32, q.dtype):
        raise bad("cos_sin_cache", cos_sin_cache.dtype, f"float32 or q's {q.dtype}")
    if cos_sin_cache.device != q.device:
        raise bad("cos_sin_cache", f"device {cos_sin_cache.device}", f"q's device {q.device}")
    if rope_rounding not in ROPE_ROUNDINGS:
        raise bad("rope_rounding", rope_rounding, "one of " + ", ".join(ROPE_ROUNDINGS))


def _check_cache(q, k_cache, v_cache, cache_loc, mode, num_kv_heads, head_dim):
    given = {"k_cache": k_cache, "v_cache": v_cache, "cache_loc": cache_loc}
    for name, x in given.items():
        if (x is None) != (mode is QKVMode.Q):
            wanted = "None" if mode is QKVMode.Q else "a tensor"
            raise bad(name, "None" if x is None else "a tensor", f"{wanted} in mode {mode}")
    if mode is QKVMode.Q:
        return
    _check_indices("cache_loc", cache_loc, q)
    for name in ("k_cache", "v_cache"):
        cache = given[name]
        if tuple(cache.shape[1:]) != (num_kv_heads, head_dim) or cache.dim() != 3:
            raise bad(name, tuple(cache.shape), f"[slots, {num_kv_heads}, {head_dim}]")
        if cache.stride()[1:] != (head_dim, 1):
            raise bad(name, f"strides {cache.stride()}", f"strides (any, {head_dim}, 1)")
        if cache.dtype != k_cache.dtype or cache.dtype not in (q.dtype, *FP8):
            raise bad(
                name, cache.dtype, f"q's {q.dtype}, float8_e4m3fn or float8_e5m2, the same for k_cache and v_cache"
            )
        if cache.device != q.device:
            raise bad(name, f"device {cache.device}", f"q's device {q.device}")
