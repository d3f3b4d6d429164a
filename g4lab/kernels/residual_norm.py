"""How a Gemma-4 layer ends, in one launch: norm, residual and layer scalar, for one branch or for two.

    residual_norm        out = (norm(x) * weight + residual) * scalar
    dual_residual_norm   out = (norm(norm(x1) * weight1 + norm(x2) * weight2) * weight + residual) * scalar

The second ends a MoE layer: x1 is the dense MLP's branch, x2 the experts'. Layers with per-layer embeddings use the
first twice, without the scalar before their embedding's branch and with it after.

Rounding. "eager" rounds every operator's result to the dtype: each norm, each sum, the product (transformers, and
SGLang where it does not fuse). "fp32" rounds once, at the end (SGLang 0.5.21's fused kernels on CUDA). The residual
stream runs through this kernel in every layer, so the choice moves every logit a little.
"""

import torch
import triton
import triton.language as tl

from g4lab.errors import bad
from g4lab.kernels import ieee, rms, rows
from g4lab.kernels.checks import check_vector
from g4lab.kernels.compile_case import CompileCase
from g4lab.kernels.rows import pick_launch

ROUNDINGS = ("eager", "fp32")


def residual_norm_reference(
    x, weight, residual, scalar=None, eps=1e-6, *, rounding="eager", mean_square=rms.mean_square
):  # fmt: skip
    """The chain operator by operator: in x's dtype for "eager", in fp32 with one rounding for "fp32"."""
    dtype = x.dtype
    if rounding == "fp32":
        x, residual = x.float(), residual.float()
    return _finish(rms.rms_norm_reference(x, weight, eps, mean_square=mean_square), residual, scalar).to(dtype)


def dual_residual_norm_reference(
    x1, weight1, x2, weight2, weight, residual, scalar=None, eps=1e-6, *, rounding="eager", mean_square=rms.mean_square
):  # fmt: skip
    """The chain of both branches, as `residual_norm_reference`."""
    dtype = x1.dtype
    if rounding == "fp32":
        x1, x2, residual = x1.float(), x2.float(), residual.float()
    both = rms.rms_norm_reference(x1, weight1, eps, mean_square=mean_square)
    both = both + rms.rms_norm_reference(x2, weight2, eps, mean_square=mean_square)
    return _finish(rms.rms_norm_reference(both, weight, eps, mean_square=mean_square), residual, scalar).to(dtype)


def _finish(normed, residual, scalar):
    out = normed + residual
    return out if scalar is None else out * scalar.to(out.dtype)


@triton.jit
def _normed(x, r, weight_ptr, dtype: tl.constexpr, start, COLS: tl.constexpr, N: tl.constexpr, EAGER: tl.constexpr):
    out = x * r * rows.load_vector(weight_ptr, start, COLS, N)
    return ieee.round_to(out, dtype) if EAGER else out


@triton.jit
def _end(normed, residual_ptr, scalar_ptr, out_ptr, stride, token, num_tokens,
         COLS: tl.constexpr, N: tl.constexpr, EAGER: tl.constexpr, SCALAR: tl.constexpr):  # fmt: skip
    """Add the residual, multiply by the scalar, round, store."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    out = normed + rows.load_rows(residual_ptr, stride, token, num_tokens, 0, COLS, N)
    if SCALAR:
        out = (ieee.round_to(out, dtype) if EAGER else out) * ieee.widen(tl.load(scalar_ptr))
    rows.store_rows(out_ptr, token, num_tokens, ieee.round_to(out, dtype), N, COLS)


@triton.jit
def _residual_norm_kernel(
    x_ptr, weight_ptr, residual_ptr, scalar_ptr, out_ptr, num_tokens, stride_x, stride_residual, eps,
    N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, EAGER: tl.constexpr, SCALAR: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    r = rows.row_rrms(x_ptr, stride_x, token, num_tokens, eps, N, ROWS)
    x = rows.load_rows(x_ptr, stride_x, token, num_tokens, 0, COLS, N)
    normed = _normed(x, r, weight_ptr, x_ptr.dtype.element_ty, 0, COLS, N, EAGER)
    _end(normed, residual_ptr, scalar_ptr, out_ptr, stride_residual, token, num_tokens, COLS, N, EAGER, SCALAR)


@triton.jit
def _both(x1_ptr, weight1_ptr, r1, stride_x1, x2_ptr, weight2_ptr, r2, stride_x2, token, num_tokens,
          start, COLS: tl.constexpr, N: tl.constexpr, EAGER: tl.constexpr):  # fmt: skip
    """The sum of both branches' norms."""
    dtype: tl.constexpr = x1_ptr.dtype.element_ty
    x1 = rows.load_rows(x1_ptr, stride_x1, token, num_tokens, start, COLS, N)
    x2 = rows.load_rows(x2_ptr, stride_x2, token, num_tokens, start, COLS, N)
    out = _normed(x1, r1, weight1_ptr, dtype, start, COLS, N, EAGER)
    out += _normed(x2, r2, weight2_ptr, dtype, start, COLS, N, EAGER)
    return ieee.round_to(out, dtype) if EAGER else out


@triton.jit
def _dual_residual_norm_kernel(
    x1_ptr, weight1_ptr, x2_ptr, weight2_ptr, weight_ptr, residual_ptr, scalar_ptr, out_ptr,
    num_tokens, stride_x1, stride_x2, stride_residual, eps,
    N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, EAGER: tl.constexpr, SCALAR: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    r1 = rows.row_rrms(x1_ptr, stride_x1, token, num_tokens, eps, N, ROWS)
    r2 = rows.row_rrms(x2_ptr, stride_x2, token, num_tokens, eps, N, ROWS)
    total = tl.zeros([ROWS, rms.CHUNK], tl.float32)
    for start in tl.range(0, N, rms.CHUNK, loop_unroll_factor=8):  # all at once would take ten seconds to compile
        both = _both(x1_ptr, weight1_ptr, r1, stride_x1, x2_ptr, weight2_ptr, r2, stride_x2, token, num_tokens,
                     start, rms.CHUNK, N, EAGER)  # fmt: skip
        total += both * both
    r = rms.rrms(total, eps, N, ROWS)
    both = _both(x1_ptr, weight1_ptr, r1, stride_x1, x2_ptr, weight2_ptr, r2, stride_x2, token, num_tokens,
                 0, COLS, N, EAGER)  # fmt: skip
    normed = _normed(both, r, weight_ptr, x1_ptr.dtype.element_ty, 0, COLS, N, EAGER)
    _end(normed, residual_ptr, scalar_ptr, out_ptr, stride_residual, token, num_tokens, COLS, N, EAGER, SCALAR)


def residual_norm(x, weight, residual, scalar=None, eps=1e-6, *, rounding="eager", launch=None):
    """(norm(x) * weight + residual) * scalar in one launch; safe inside a CUDA graph.

    Args:
        x, residual: [T, H] bf16, fp16 or fp32; rows may lie apart, a row's elements not. T may be 0.
        weight: [H], any of the three dtypes.
        scalar: one element, any of the three dtypes, or None for 1.
        rounding: "eager" or "fp32".
        launch: a RowLaunch; default `pick_launch`.

    Returns:
        [T, H] of x's dtype, a new contiguous tensor.

    Raises:
        BadInput: a shape, stride, dtype, device or option it cannot take.
    """
    rows.check_rows("x residual", x, residual)
    check_vector("weight", weight, x.shape[1], "x", x)
    return _launch(_residual_norm_kernel, (x,), (x, weight.contiguous()), residual, scalar, eps, rounding, launch)


def dual_residual_norm(
    x1, weight1, x2, weight2, weight, residual, scalar=None, eps=1e-6, *, rounding="eager", launch=None
):  # fmt: skip
    """(norm(norm(x1) * weight1 + norm(x2) * weight2) * weight + residual) * scalar in one launch.

    Arguments, result and errors as `residual_norm`: x1 and x2 [T, H] like x, weight1 and weight2 [H] like weight.
    """
    rows.check_rows("x1 x2 residual", x1, x2, residual)
    for name, each in (("weight1", weight1), ("weight2", weight2), ("weight", weight)):
        check_vector(name, each, x1.shape[1], "x1", x1)
    branches = (x1, weight1.contiguous(), x2, weight2.contiguous(), weight.contiguous())
    return _launch(_dual_residual_norm_kernel, (x1, x2), branches, residual, scalar, eps, rounding, launch)


def _launch(kernel, inputs, branches, residual, scalar, eps, rounding, launch):
    rows.check_rounding(rounding, ROUNDINGS)
    if scalar is not None and (scalar.numel() != 1 or scalar.device != residual.device):
        raise bad("scalar", f"{tuple(scalar.shape)} on {scalar.device}", f"one element on {residual.device}, or None")
    num_tokens, hidden = residual.shape
    out = torch.empty((num_tokens, hidden), dtype=residual.dtype, device=residual.device)
    if num_tokens == 0:
        return out
    launch = launch or pick_launch(num_tokens, hidden, interpreted=ieee.INTERPRETED.value)
    with ieee.launching(kernel):
        kernel[(triton.cdiv(num_tokens, launch.rows),)](
            *branches, residual, residual if scalar is None else scalar, out,
            num_tokens, *(x.stride(0) for x in inputs), residual.stride(0), eps,
            **_constants(hidden, rounding, scalar is not None, launch),
            num_warps=launch.num_warps, **ieee.LAUNCH_OPTIONS,
        )  # fmt: skip
    return out


def _constants(hidden, rounding, has_scalar, launch):
    constants = {"N": hidden, "COLS": triton.next_power_of_2(hidden), "ROWS": launch.rows}
    return constants | {"EAGER": rounding == "eager", "SCALAR": has_scalar}


def compile_case(*, dtype="bf16", hidden=2816, rounding="eager", scalar=True, dual=False, launch=None):
    """The kernel as `residual_norm` launches it on a GPU (`dual_residual_norm` with dual=True)."""
    inputs = ("x1", "weight1", "x2", "weight2", "weight") if dual else ("x", "weight")
    signature = {f"{name}_ptr": f"*{dtype}:16" for name in (*inputs, "residual", "scalar", "out")}
    signature |= {"num_tokens": "i32", **{f"stride_{x}": "i32:16" for x in inputs if x.startswith("x")}}
    signature |= {"stride_residual": "i32:16", "eps": "fp32"}
    launch = launch or pick_launch(1, hidden)
    constants = _constants(hidden, rounding, scalar, launch)
    kernel = _dual_residual_norm_kernel if dual else _residual_norm_kernel
    return CompileCase(kernel, signature, constants, {"num_warps": launch.num_warps, **ieee.LAUNCH_OPTIONS})


def dual_compile_case(**choices):
    """`compile_case` of `dual_residual_norm`, with the same choices."""
    return compile_case(**choices, dual=True)
