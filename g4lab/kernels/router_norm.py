"""The norm of Gemma-4's router in one launch, rounded as one of four chains rounds.

    out[t] = norm(x[t]) * scale * H**-0.5          x [T, H], scale [H] -> [T, H]; the norm has no weight

The chains agree in real numbers. In bf16 they round at different places, and the router turns last bits into other
experts: SGLang PR #26588 folded the scale into the norm, lost GSM8K points under MTP and took it out again. Upstream
folds it today.

    transformers   round(round(round(norm(x)) * scale) * root)       transformers' Gemma4TextRouter
    two_step       round(round(norm(x)) * folded)                    SGLang where PR #26588 took its fusion out
    sglang         round(norm(x) * folded)                           SGLang 0.5.21, Gemma4Router.fuse_scale
    fp32           round(norm(x) * scale * root)

folded = round(scale * round(root)): SGLang makes root = H**-0.5 a tensor of the model's dtype, which is exact where H
is a power of 4 and shifts all logits alike elsewhere. For fp32 the four differ by fp32 rounding only.
"""

import torch
import triton
import triton.language as tl

from g4lab.errors import bad
from g4lab.kernels import ieee, rms, rows
from g4lab.kernels.checks import check_vector
from g4lab.kernels.compile_case import CompileCase
from g4lab.kernels.rows import pick_launch

ROUNDINGS = ("transformers", "two_step", "sglang", "fp32")


def router_norm_reference(x, scale, eps=1e-6, *, rounding="transformers", mean_square=rms.mean_square):
    """The eager chain of each rounding, operator by operator; x [T, H], scale [H] of the same dtype -> [T, H]."""
    root = x.shape[-1] ** -0.5
    if rounding in ("transformers", "two_step"):
        normed = rms.rms_norm_reference(x, None, eps, mean_square=mean_square)
        return normed * scale * root if rounding == "transformers" else normed * folded_scale(scale)
    normed = rms.rms_norm_reference(x.float(), None, eps, mean_square=mean_square)
    if rounding == "sglang":
        return (normed * folded_scale(scale).float()).to(x.dtype)
    return (normed * scale.float() * root).to(x.dtype)


def folded_scale(scale):
    """SGLang's folded scale: scale [H] times H**-0.5, the root and the product in scale's dtype."""
    return scale * torch.tensor(scale.shape[0] ** -0.5, dtype=scale.dtype, device=scale.device)


@triton.jit
def _router_norm_kernel(
    x_ptr, scale_ptr, out_ptr, num_tokens, stride_x, root, eps,
    N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    r = rows.row_rrms(x_ptr, stride_x, token, num_tokens, eps, N, ROWS)
    normed = rows.load_rows(x_ptr, stride_x, token, num_tokens, 0, COLS, N) * r
    scale = rows.load_vector(scale_ptr, 0, COLS, N)
    if ROUNDING == "transformers":
        out = ieee.round_to(ieee.round_to(normed, dtype) * scale, dtype) * root
    elif ROUNDING == "two_step":
        out = ieee.round_to(normed, dtype) * ieee.round_to(scale * root, dtype)
    elif ROUNDING == "sglang":
        out = normed * ieee.round_to(scale * root, dtype)
    else:
        out = normed * scale * root
    rows.store_rows(out_ptr, token, num_tokens, ieee.round_to(out, dtype), N, COLS)


def router_norm(x, scale, eps=1e-6, *, rounding="transformers", launch=None):
    """Normalise and scale the router's input in one launch; safe inside a CUDA graph.

    Args:
        x: [T, H] bf16, fp16 or fp32; rows may lie apart, a row's elements not. T may be 0.
        scale: [H] of x's dtype.
        rounding: one of ROUNDINGS.
        launch: a RowLaunch; default `pick_launch`.

    Returns:
        [T, H] of x's dtype, a new contiguous tensor.

    Raises:
        BadInput: a shape, stride, dtype, device or option it cannot take.
    """
    rows.check_rows("x", x)
    check_vector("scale", scale, x.shape[1], "x", x)
    if scale.dtype != x.dtype:
        raise bad("scale", scale.dtype, f"x's dtype {x.dtype}")
    rows.check_rounding(rounding, ROUNDINGS)
    num_tokens, hidden = x.shape
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    launch = launch or pick_launch(num_tokens, hidden, interpreted=ieee.INTERPRETED.value)
    with ieee.launching(_router_norm_kernel):
        _router_norm_kernel[(triton.cdiv(num_tokens, launch.rows),)](
            x, scale.contiguous(), out, num_tokens, x.stride(0), _root(hidden, x.dtype, rounding), eps,
            **_constants(hidden, rounding, launch), num_warps=launch.num_warps, **ieee.LAUNCH_OPTIONS,
        )  # fmt: skip
    return out


def _constants(hidden, rounding, launch):
    return {"N": hidden, "COLS": triton.next_power_of_2(hidden), "ROWS": launch.rows, "ROUNDING": rounding}


def _root(hidden, dtype, rounding):
    """H**-0.5 as the chain has it."""
    root = hidden**-0.5
    return root if rounding in ("transformers", "fp32") else torch.tensor(root, dtype=dtype).item()


def compile_case(*, dtype="bf16", hidden=2816, rounding="transformers", launch=None):
    """The kernel as `router_norm` launches it on a GPU, for `g4lab.tuning.compile_facts("router_norm")`."""
    signature = dict.fromkeys(("x_ptr", "scale_ptr", "out_ptr"), f"*{dtype}:16")
    signature |= {"num_tokens": "i32", "stride_x": "i32:16", "root": "fp32", "eps": "fp32"}
    launch = launch or pick_launch(1, hidden)
    options = {"num_warps": launch.num_warps, **ieee.LAUNCH_OPTIONS}
    return CompileCase(_router_norm_kernel, signature, _constants(hidden, rounding, launch), options)
