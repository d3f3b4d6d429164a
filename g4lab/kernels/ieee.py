"""Arithmetic with one defined result, compiled or interpreted: the steps that a bit-exact kernel is made of.

Triton's defaults trade the last bit for speed: `tl.exp` is a multiply and `ex2.approx`, `/` is `div.full`, and
multiply-add is contracted into fma. Eager PyTorch uses CUDA's accurate expf, IEEE division and no contraction across
operators. The functions here emit eager's instructions when compiled, and their correctly rounded meaning in the
interpreter, which has no libdevice and truncates fp32 to bf16. Launch kernels built on them with `LAUNCH_OPTIONS`.
"""

import contextlib
import warnings

import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

# Contracting a multiply and an add of the source into fma, or flushing subnormals, would change results.
LAUNCH_OPTIONS = {"enable_fp_fusion": False, "enable_reflect_ftz": False}

INTERPRETED = tl.constexpr(knobs.runtime.interpret)

# The code to which the installed PyTorch converts what is too large for e4m3fn: 448 (0x7E) since 2.12, before that NaN
# (0x7F; pytorch/pytorch#178817).
E4M3_LARGEST = tl.constexpr(int(torch.tensor(1e9).to(torch.float8_e4m3fn).view(torch.uint8)))


@contextlib.contextmanager
def _interpreting(kernel):
    # A profiler sees no kernel here, so the launch gets an annotation with its name.
    with (
        np.errstate(divide="ignore", invalid="ignore", over="ignore"),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # of a maximum over NaN alone
        torch.profiler.record_function(f"{kernel.fn.__name__} (interpreted)"),
    ):
        yield


def launching(kernel):
    """Context of a launch of `kernel`, nothing on a GPU. In the interpreter NumPy does not warn of what a GPU does in
    silence (inf - inf, overflow, 1 / 0), and a profile shows the launch as an annotation "NAME (interpreted)"."""
    return _interpreting(kernel) if INTERPRETED.value else contextlib.nullcontext()


@triton.jit
def exp(x):
    """e**x in fp32: CUDA's accurate expf when compiled, the correctly rounded value in the interpreter."""
    return tl.exp(x.to(tl.float64)).to(tl.float32) if INTERPRETED else libdevice.exp(x)


@triton.jit
def widen(x):
    """bf16, fp16 or fp32 as fp32, exactly; the interpreter's own cast takes bf16's subnormals for zeros."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """fp32 `x` rounded to the nearest even value of `dtype`, held in fp32."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        result = tl.where(x != x, x, bits.to(tl.float32, bitcast=True))
    else:
        result = x.to(dtype).to(tl.float32)
    return result


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """What `round_to` has rounded to `dtype`, or an integer, in `dtype`; exact, as `widen`."""
    if INTERPRETED and dtype == tl.bfloat16:
        return (x.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def butterfly_sum(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sum over the last axis of [ROWS, COLS] in the order of a warp's shuffles at distance COLS/2, ..., 2, 1."""
    if COLS == 1:
        result = tl.reshape(x, [ROWS])
    else:
        HALF: tl.constexpr = COLS // 2
        halves = tl.reshape(x, [ROWS, 2, HALF])
        result = butterfly_sum(tl.sum(halves, axis=1), ROWS, HALF)
    return result


@triton.jit
def fp8_bits(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr):
    """fp32 `x` rounded to the nearest even fp8 value, as its bits in uint8: what PyTorch's conversion gives.

    LARGEST is the code of all that is too large. e4m3fn: MANTISSA 3, BIAS 7, LARGEST `E4M3_LARGEST`. e5m2: 2, 15, 0x7C
    (infinity).
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    shift: tl.constexpr = 23 - MANTISSA
    code = magnitude + ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1)
    code = (code >> shift) - ((127 - BIAS) << MANTISSA)
    # Below the least normal value: adding 2**23 of fp8's smallest steps leaves their count in the low bits.
    steps: tl.constexpr = (127 + 24 - BIAS - MANTISSA) << 23
    one = tl.full(x.shape, steps, tl.int32).to(tl.float32, bitcast=True)
    subnormal = (tl.abs(x) + one).to(tl.int32, bitcast=True) - steps
    code = tl.where(magnitude < ((128 - BIAS) << 23), subnormal, tl.minimum(code, LARGEST))
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
