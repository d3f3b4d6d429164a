"""Gemma-4's expert routing in one launch: top-k, softmax, per-expert scale and casts.

    ids     = the top_k largest of logits[t, :], ties to the lowest id
    weights = softmax(logits[t, ids]) * per_expert_scale[ids]            logits [T, E] -> weights fp32, ids int32 [T, K]

Eager PyTorch launches this as gatherTopK, bitonicSortKVInPlace, softmax, index, multiply and two casts (SGLang fork
pyc96/sglang PR #1 traced it at 5.8 % of decode time). Fusing it is easy; fusing it without changing the model is not:
SGLang PR #26588 reverted its fused router because the weights were not eager's bit for bit.

Rounding. `rounding="eager"` rounds where eager does: softmax in fp32 (accurate expf, sum in the butterfly order 4, 2,
1, IEEE division), its result to the logits' dtype, the scale to that dtype, their product to that dtype. `"fp32"`
rounds nowhere. For fp32 logits and scales the two are the same.

Not numbers. An expert with a NaN logit is chosen only where fewer than top_k logits are numbers; then the lowest such
ids fill up and every weight of that row is NaN. A row whose largest logit is +inf or -inf has NaN weights, as eager
has. Ids are always valid and distinct, so a bad row cannot make the expert kernels read out of bounds.

Signed zeros. CUDA's topk compares bit patterns, so -0.0 ranks below +0.0 (PyTorch 2.13 sm_90 machine code: the sign bit
selects the mask); on the CPU they are equal and tie. The kernel follows eager on the device it runs on.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from g4lab.errors import bad
from g4lab.kernels import ieee
from g4lab.kernels.checks import DTYPES
from g4lab.kernels.compile_case import CompileCase

MAX_EXPERTS, MAX_TOP_K = 1024, 16
ROUNDINGS = ("eager", "fp32")


def route_reference(logits, per_expert_scale, top_k, *, rounding="eager", softmax=torch.softmax):
    """The eager chain that SGLang runs where it does not fuse (Gemma4MoE.routing_function), operator by operator.

    `softmax` may be replaced to study the chain with another softmax. Transformers' Gemma4TextRouter is the same
    function in exact arithmetic but another one in bf16: it takes the softmax over all experts, rounds, and only then
    chooses (`g4lab.quality.router_chains`). Unlike `route`, the chain takes a NaN for the largest logit.
    """
    values, ids = topk_lowest_id(logits, top_k)
    if rounding == "fp32":
        values = values.float()
    weights = softmax(values, dim=-1)
    weights = weights * per_expert_scale[ids].to(weights.dtype)
    return weights.to(torch.float32), ids.to(torch.int32)


def topk_lowest_id(logits, top_k):
    """torch.topk over the last of two dimensions as CUDA has it: ties for the last place go to the lowest ids.

    On the CPU torch.topk gives them to any id; there a stable sort does what CUDA does.
    """
    if logits.is_cuda:
        return torch.topk(logits, top_k, dim=-1)
    values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    return values[:, :top_k], ids[:, :top_k]


@dataclass(frozen=True)
class RouterLaunch:
    """Tokens per program and warps per program."""

    block_t: int = 1
    num_warps: int = 1


def pick_launch(num_tokens: int, *, interpreted: bool = False) -> RouterLaunch:
    """One token and one warp per program: every reduction over experts stays inside a warp, without shared memory.

    In the interpreter a program is a NumPy call, so it takes as many tokens as fit the cache.
    """
    if interpreted:
        return RouterLaunch(block_t=min(1024, triton.next_power_of_2(max(1, num_tokens))))
    return RouterLaunch()


@triton.jit
def _sort_key(x, SIGNED_ZERO: tl.constexpr):
    """Signed integer that orders as `x` does, NaN below -inf but above the least integer of its width."""
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        is_nan = magnitude > 0x7F800000
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        lowest: tl.constexpr = -0x7FFFFFFF
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        magnitude = bits & 0x7FFF
        is_nan = magnitude > (0x7F80 if x.dtype == tl.bfloat16 else 0x7C00)
        key = tl.where(bits < 0, bits ^ 0x7FFF, bits)
        lowest: tl.constexpr = -0x7FFF
    if not SIGNED_ZERO:
        key = tl.where(magnitude == 0, 0, key)
    return tl.where(is_nan, lowest, key)


@triton.jit
def _key_value(key, dtype: tl.constexpr):
    """The fp32 value of a sort key; a NaN's key gives NaN."""
    if dtype == tl.float32:
        value = tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)
    else:
        bits = tl.where(key < 0, key ^ 0x7FFF, key)
        if dtype == tl.bfloat16:
            value = (bits << 16).to(tl.float32, bitcast=True)
        else:
            value = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def _row_max(x, BLOCK_T: tl.constexpr):
    """Largest of each row, [BLOCK_T, 1]; a scalar for one row, which frees the top-k tile from the experts' layout."""
    best = tl.max(x, axis=1)
    return tl.max(best, axis=0) if BLOCK_T == 1 else best[:, None]


@triton.jit
def _route_kernel(
    logits_ptr, scale_ptr, weights_ptr, ids_ptr, num_tokens, stride_t, stride_e,
    E: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    ROUND: tl.constexpr, SIGNED_ZERO: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = logits_ptr.dtype.element_ty
    least: tl.constexpr = -0x80000000
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None].to(tl.int64)
    e = tl.arange(0, BLOCK_E)[None, :]
    k = tl.arange(0, BLOCK_K)[None, :]

    x = tl.load(logits_ptr + t * stride_t + e.to(tl.int64) * stride_e, mask=(t < num_tokens) & (e < E), other=0.0)
    key = _sort_key(x, SIGNED_ZERO)
    if dtype != tl.float32:
        # A 16-bit key leaves room for the reversed id, so one integer max finds the value and breaks the tie.
        key = (key << 16) | (0xFFFF - e)
    key = tl.where(e < E, key, least)

    top_keys = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    top_ids = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    for i in tl.static_range(K):
        best = _row_max(key, BLOCK_T)
        if dtype == tl.float32:
            best_id = BLOCK_E - _row_max(tl.where(key == best, BLOCK_E - e, 0), BLOCK_T)
            key = tl.where(e == best_id, least, key)
        else:
            key = tl.where(key == best, least, key)
            best_id = 0xFFFF - (best & 0xFFFF)
            best = best >> 16
        top_keys = tl.where(k == i, best, top_keys)
        top_ids = tl.where(k == i, best_id, top_ids)
        if i == 0:
            largest = _key_value(best, dtype)

    p = tl.where(k < K, ieee.exp(_key_value(top_keys, dtype) - largest), 0.0)
    weights = tl.div_rn(p, tl.broadcast_to(ieee.butterfly_sum(p, BLOCK_T, BLOCK_K)[:, None], [BLOCK_T, BLOCK_K]))

    mask = (t < num_tokens) & (k < K)
    scale = tl.load(scale_ptr + top_ids, mask=mask, other=0.0).to(tl.float32)
    if ROUND:
        weights = ieee.round_to(ieee.round_to(weights, dtype) * ieee.round_to(scale, dtype), dtype)
    else:
        weights = weights * scale
    tl.store(weights_ptr + t * K + k, weights, mask=mask)
    tl.store(ids_ptr + t * K + k, top_ids, mask=mask)


def route(logits, per_expert_scale, top_k, *, rounding="eager", launch=None):
    """Route T tokens to `top_k` of E experts in one launch; safe inside a CUDA graph.

    Args:
        logits: [T, E] bf16, fp16 or fp32, any strides; T may be 0, E up to 1024.
        per_expert_scale: [E] bf16, fp16 or fp32 on the logits' device.
        top_k: experts per token, up to 16.
        rounding: "eager" (bit-identical to `route_reference`) or "fp32".
        launch: a RouterLaunch; default `pick_launch`.

    Returns:
        weights [T, top_k] fp32 and ids [T, top_k] int32, by falling logit, lowest id first among equals.

    Raises:
        BadInput: a shape, dtype, device or option it cannot take.
    """
    _check(logits, per_expert_scale, top_k, rounding)
    num_tokens, num_experts = logits.shape
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_tokens, top_k), dtype=torch.int32, device=logits.device)
    if num_tokens == 0:
        return weights, ids
    launch = launch or pick_launch(num_tokens, interpreted=ieee.INTERPRETED.value)
    with ieee.launching(_route_kernel):
        _route_kernel[(triton.cdiv(num_tokens, launch.block_t),)](
            logits, per_expert_scale.contiguous(), weights, ids, num_tokens, *logits.stride(),
            **_constants(num_experts, top_k, rounding, launch, signed_zero=logits.is_cuda),
            num_warps=launch.num_warps, **ieee.LAUNCH_OPTIONS,
        )  # fmt: skip
    return weights, ids


def _constants(num_experts, top_k, rounding, launch, *, signed_zero):
    return {
        "E": num_experts,
        "K": top_k,
        "BLOCK_T": launch.block_t,
        "BLOCK_E": triton.next_power_of_2(num_experts),
        "BLOCK_K": triton.next_power_of_2(top_k),
        "ROUND": rounding == "eager",
        "SIGNED_ZERO": signed_zero,
    }


def compile_case(*, dtype="bf16", num_experts=128, top_k=8, rounding="eager", launch=None):
    """The kernel as `route` launches it on a GPU for contiguous logits, for `g4lab.tuning.compile_facts("router")`."""
    if dtype not in DTYPES.values():
        raise bad("dtype", dtype, "one of " + ", ".join(DTYPES.values()))
    launch = launch or pick_launch(1)
    constants = _constants(num_experts, top_k, rounding, launch, signed_zero=True) | {"stride_e": 1}
    signature = {
        "logits_ptr": f"*{dtype}:16",
        "scale_ptr": f"*{dtype}:16",
        "weights_ptr": "*fp32:16",
        "ids_ptr": "*i32:16",
        "num_tokens": "i32",
        "stride_t": "i32:16",
    }
    return CompileCase(_route_kernel, signature, constants, {"num_warps": launch.num_warps, **ieee.LAUNCH_OPTIONS})


def _check(logits, per_expert_scale, top_k, rounding):
    if logits.dim() != 2:
        raise bad("logits", tuple(logits.shape), "2 dimensions, [tokens, experts]")
    if logits.dtype not in DTYPES:
        raise bad("logits", logits.dtype, "bfloat16, float16 or float32")
    num_experts = logits.shape[1]
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise bad("logits", f"{num_experts} experts", f"1 to {MAX_EXPERTS} experts in the last dimension")
    if tuple(per_expert_scale.shape) != (num_experts,):
        raise bad("per_expert_scale", tuple(per_expert_scale.shape), f"shape ({num_experts},), one scale per expert")
    if per_expert_scale.dtype not in DTYPES:
        raise bad("per_expert_scale", per_expert_scale.dtype, "bfloat16, float16 or float32")
    if per_expert_scale.device != logits.device:
        raise bad("per_expert_scale", f"device {per_expert_scale.device}", f"the logits' device {logits.device}")
    if not 1 <= top_k <= min(num_experts, MAX_TOP_K):
        raise bad("top_k", top_k, f"between 1 and {min(num_experts, MAX_TOP_K)} ({num_experts} experts)")
    if rounding not in ROUNDINGS:
        raise bad("rounding", rounding, "one of " + ", ".join(ROUNDINGS))
