"""Gemma-4's RMSNorm of the heads of Q, K and V in one launch, in place on the packed projection.

    q[t, h] = norm(q[t, h]) * q_weight        k[t, h] = norm(k[t, h]) * k_weight        v[t, h] = norm(v[t, h])

It replaces a launch per tensor (q_norm, k_norm, v_norm); on the layers whose V is K's projection (attention_k_eq_v) it
reads that projection once and writes K and V from one root mean square, where SGLang 0.5.21 computes the projection
twice, normalises both and never knows that they are one (SGLang PR #25461 proposed such a kernel and, in review, one
enum for the three kinds of layers).

Rounding. fp32 inside, one rounding to the tensors' dtype at the end: transformers and SGLang agree on that. The order
of the sum is `g4lab.kernels.rms`'s. A head with an infinite element has NaN where it is infinite and 0 elsewhere; one
with a NaN is NaN throughout; one whose squares overflow fp32 is 0: as eager has them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from g4lab.errors import bad
from g4lab.gemma4.specs import QKVMode
from g4lab.kernels import ieee, rms
from g4lab.kernels.checks import check_alike, check_vector
from g4lab.kernels.compile_case import CompileCase

MAX_HEAD_DIM = 512


def qkv_rmsnorm_reference(
    q, k, v, q_weight, k_weight, *, mode, num_q_heads, num_kv_heads, head_dim, eps=1e-6, mean_square=rms.mean_square
):
    """The eager chain, one operator after another; arguments and result as `qkv_rmsnorm`, inputs left as they are."""

    def normed(x, weight, heads):
        x = x.unflatten(-1, (heads, head_dim))
        return rms.rms_norm_reference(x, weight, eps, mean_square=mean_square).flatten(-2)

    new_q = normed(q, q_weight, num_q_heads)
    if mode == QKVMode.Q:
        return new_q, None, None
    return new_q, normed(k, k_weight, num_kv_heads), normed(k if mode == QKVMode.QK else v, None, num_kv_heads)


@dataclass(frozen=True)
class QKVLaunch:
    """Rows (a token's head each) and warps of one program."""

    rows: int
    num_warps: int = 1


# The first entry whose token count is not exceeded. A warp has all of a row, so no reduction leaves it. Few tokens:
# as many programs as there are rows. Many: four rows, so that each warp has 2 KB and more in flight (by the bytes that
# a Hopper needs in flight at its memory's latency; not measured yet).
LAUNCHES = ((256, QKVLaunch(rows=1)), (None, QKVLaunch(rows=4)))
INTERPRETED_ROWS = 1024  # at most


def pick_launch(num_tokens: int, num_q_heads: int = 1, *, interpreted: bool = False) -> QKVLaunch:
    """The launch for this many tokens, from LAUNCHES; in the interpreter, where a program is a NumPy call, all rows."""
    if interpreted:
        return QKVLaunch(rows=min(INTERPRETED_ROWS, triton.next_power_of_2(max(1, num_tokens * num_q_heads))))
    return next(launch for limit, launch in LAUNCHES if limit is None or num_tokens <= limit)


@triton.jit
def load_heads(ptr, stride, first, num_tokens, HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    """ROWS heads from row `first` on, a row being a token's head: (low half, high half) fp32 [ROWS, HALF], each row's
    token [ROWS, 1], its offset in the tensor, and whether there is such a row."""
    row = first * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    token = row // HEADS
    offset = token * stride + (row % HEADS) * (2 * HALF) + tl.arange(0, HALF)[None, :]
    there = token < num_tokens
    low = ieee.widen(tl.load(ptr + offset, mask=there, other=0.0))
    high = ieee.widen(tl.load(ptr + offset + HALF, mask=there, other=0.0))
    return low, high, token, offset, there


@triton.jit
def scaled(low, high, rrms, weight_ptr, dtype: tl.constexpr, HALF: tl.constexpr, WEIGHT: tl.constexpr):
    """Both halves times `rrms` and the weight, rounded once to `dtype` but held in fp32."""
    low, high = low * rrms, high * rrms
    if WEIGHT:
        cols = tl.arange(0, HALF)[None, :]
        low *= ieee.widen(tl.load(weight_ptr + cols))
        high *= ieee.widen(tl.load(weight_ptr + cols + HALF))
    return ieee.round_to(low, dtype), ieee.round_to(high, dtype)


@triton.jit
def store_heads(ptr, offset, low, high, mask, HALF: tl.constexpr):
    """Write rounded halves where they belong."""
    dtype: tl.constexpr = ptr.dtype.element_ty
    tl.store(ptr + offset, ieee.narrow(low, dtype), mask=mask)
    tl.store(ptr + offset + HALF, ieee.narrow(high, dtype), mask=mask)


@triton.jit
def _norm_in_place(ptr, weight_ptr, stride, first, num_tokens, eps,
                   HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, WEIGHT: tl.constexpr):  # fmt: skip
    low, high, _, offset, there = load_heads(ptr, stride, first, num_tokens, HEADS, HALF, ROWS)
    r = rms.head_rrms(low, high, eps, ROWS, HALF)
    low, high = scaled(low, high, r, weight_ptr, ptr.dtype.element_ty, HALF, WEIGHT)
    store_heads(ptr, offset, low, high, there, HALF)


@triton.jit
def _qkv_norm_kernel(
    q_ptr, k_ptr, v_ptr, q_weight_ptr, k_weight_ptr, num_tokens, stride_q, stride_k, stride_v, eps,
    MODE: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    q_programs = tl.cdiv(num_tokens * HQ, ROWS)
    kv_programs = tl.cdiv(num_tokens * HKV, ROWS)
    if program < q_programs:
        _norm_in_place(q_ptr, q_weight_ptr, stride_q, program, num_tokens, eps, HQ, HALF, ROWS, True)
    elif MODE == "QKV":
        first = program - q_programs
        if first < kv_programs:
            _norm_in_place(k_ptr, k_weight_ptr, stride_k, first, num_tokens, eps, HKV, HALF, ROWS, True)
        else:
            _norm_in_place(v_ptr, k_weight_ptr, stride_v, first - kv_programs, num_tokens, eps, HKV, HALF, ROWS, False)
    elif MODE == "QK":
        low, high, token, offset, there = load_heads(k_ptr, stride_k, program - q_programs, num_tokens, HKV, HALF, ROWS)
        r = rms.head_rrms(low, high, eps, ROWS, HALF)
        k_low, k_high = scaled(low, high, r, k_weight_ptr, k_ptr.dtype.element_ty, HALF, True)
        v_low, v_high = scaled(low, high, r, k_weight_ptr, k_ptr.dtype.element_ty, HALF, False)
        store_heads(k_ptr, offset, k_low, k_high, there, HALF)
        store_heads(v_ptr, offset + token * (stride_v - stride_k), v_low, v_high, there, HALF)


def qkv_rmsnorm(
    q, k, v, q_weight, k_weight, *, mode, num_q_heads, num_kv_heads, head_dim, eps=1e-6, launch=None
):  # fmt: skip
    """Normalise the heads of q, k and v in one launch, in place; safe inside a CUDA graph.

    Args:
        q: [T, num_q_heads * head_dim] bf16, fp16 or fp32; rows may lie apart (a slice of the packed projection), a
            row's elements not. T may be 0.
        k, v: [T, num_kv_heads * head_dim] likewise. Mode QK: v is None. Mode Q: both are None.
        q_weight, k_weight: [head_dim], any of the three dtypes; k_weight is None in mode Q.
        mode: a QKVMode or its name.
        head_dim: a power of two from 8 to 512.
        launch: a QKVLaunch; default `pick_launch`.

    Returns:
        q, k, v: the arguments, except in mode QK a new v [T, num_kv_heads * head_dim].

    Raises:
        BadInput: a shape, stride, dtype, device or option it cannot take.
    """
    mode = check_heads(q, k, v, q_weight, k_weight, mode, num_q_heads, num_kv_heads, head_dim)
    if mode is QKVMode.QK:
        v = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    num_tokens = q.shape[0]
    if num_tokens == 0:
        return q, k, v
    launch = launch or pick_launch(num_tokens, num_q_heads, interpreted=ieee.INTERPRETED.value)
    with ieee.launching(_qkv_norm_kernel):
        _qkv_norm_kernel[(programs(mode, num_tokens, num_q_heads, num_kv_heads, launch),)](
            *pointers(q, k, v, q_weight, k_weight), num_tokens, *strides(q, k, v), eps,
            MODE=mode.value, HQ=num_q_heads, HKV=num_kv_heads, HALF=head_dim // 2, ROWS=launch.rows,
            num_warps=launch.num_warps, **ieee.LAUNCH_OPTIONS,
        )  # fmt: skip
    return q, k, v


def programs(mode: QKVMode, num_tokens: int, num_q_heads: int, num_kv_heads: int, launch: QKVLaunch) -> int:
    """Programs of one launch: Q's, then K's, then V's (in mode QK K's write V too)."""
    tensors_of_kv = {QKVMode.QKV: 2, QKVMode.QK: 1, QKVMode.Q: 0}[mode]
    q, kv = (triton.cdiv(num_tokens * heads, launch.rows) for heads in (num_q_heads, num_kv_heads))
    return q + tensors_of_kv * kv


def pointers(q, k, v, q_weight, k_weight):
    """The five tensors for a launch; a tensor that the mode does not have is stood in for and never touched."""
    k_weight = q_weight if k_weight is None else k_weight
    return q, q if k is None else k, q if v is None else v, q_weight.contiguous(), k_weight.contiguous()


def strides(q, k, v):
    """Row strides for a launch, 0 where there is no tensor."""
    return tuple(0 if x is None else x.stride(0) for x in (q, k, v))


def compile_case(*, dtype="bf16", mode="QKV", num_q_heads=16, num_kv_heads=8, head_dim=256, rows=1, num_warps=1):
    """The kernel as `qkv_rmsnorm` launches it on a GPU, for `g4lab.tuning.compile_facts("qkv_norm")`."""
    signature = {
        **{f"{name}_ptr": f"*{dtype}:16" for name in ("q", "k", "v", "q_weight", "k_weight")},
        "num_tokens": "i32",
        **{f"stride_{name}": "i32:16" for name in "qkv"},
        "eps": "fp32",
    }
    constants = {"MODE": str(mode), "HQ": num_q_heads, "HKV": num_kv_heads, "HALF": head_dim // 2, "ROWS": rows}
    return CompileCase(_qkv_norm_kernel, signature, constants, {"num_warps": num_warps, **ieee.LAUNCH_OPTIONS})


def check_heads(q, k, v, q_weight, k_weight, mode, num_q_heads, num_kv_heads, head_dim) -> QKVMode:
    """The mode as a QKVMode. Raises BadInput for what the kernels on heads cannot take."""
    if mode not in list(QKVMode):
        raise bad("mode", mode, "QKV, QK or Q")
    mode = QKVMode(mode)
    if head_dim not in (8, 16, 32, 64, 128, 256, MAX_HEAD_DIM):
        raise bad("head_dim", head_dim, f"a power of two from 8 to {MAX_HEAD_DIM}")
    absent = {QKVMode.QKV: (), QKVMode.QK: ("v",), QKVMode.Q: ("k", "v", "k_weight")}[mode]
    for name, x in {"q": q, "k": k, "v": v, "k_weight": k_weight}.items():
        if (x is None) != (name in absent):
            raise bad(
                name, "None" if x is None else "a tensor", f"{'None' if x is not None else 'a tensor'} in mode {mode}"
            )
    for name, x, heads in (("q", q, num_q_heads), ("k", k, num_kv_heads), ("v", v, num_kv_heads)):
        if x is not None:
            _check_tensor(name, x, q, heads, head_dim)
    check_vector("q_weight", q_weight, head_dim, "q", q)
    if k_weight is not None:
        check_vector("k_weight", k_weight, head_dim, "q", q)
    return mode


def _check_tensor(name, x, q, heads, head_dim):
    if heads < 1:
        raise bad("num_q_heads" if name == "q" else "num_kv_heads", heads, "1 or more")
    if x.dim() != 2 or x.shape[1] != heads * head_dim:
        raise bad(name, tuple(x.shape), f"[tokens, {heads * head_dim}], {heads} heads of {head_dim}")
    if x.shape[0] != q.shape[0]:
        raise bad(name, f"{x.shape[0]} tokens", f"q's {q.shape[0]} tokens")
    check_alike(name, x, "q", q)
