"""Norms of whole rows (the hidden size), added in the order of `rms`.

A row is read twice: 128 elements at a time for its root mean square, one for each of four warps' threads, all of them
in flight at once; then whole, for the result. The second read finds it in the cache. The launch and the checks are the
same for every kernel on rows.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from g4lab.errors import bad
from g4lab.kernels import ieee, rms
from g4lab.kernels.checks import check_alike

MAX_HIDDEN = 16384


@dataclass(frozen=True)
class RowLaunch:
    """Rows and warps of one program. Neither changes a bit of the result."""

    rows: int = 1
    num_warps: int = 4


ELEMENTS_PER_WARP = 1024  # of the row that the second read holds, so that three rows fit the registers


def pick_launch(num_tokens: int, hidden: int, *, interpreted: bool = False) -> RowLaunch:
    """One row for each program, 4 warps or, above 4096 elements, 8 and more.

    In the interpreter a program is a NumPy call, so it takes up to 256 rows.
    """
    if interpreted:
        return RowLaunch(rows=min(256, triton.next_power_of_2(max(1, num_tokens))))
    return RowLaunch(num_warps=max(4, triton.next_power_of_2(hidden) // ELEMENTS_PER_WARP))


@triton.jit
def load_rows(ptr, stride, token, num_tokens, start, COLS: tl.constexpr, N: tl.constexpr):
    """Elements `start` to start + COLS of the rows `token` [ROWS, 1], fp32 [ROWS, COLS]; 0 outside."""
    cols = start + tl.arange(0, COLS)[None, :]
    return ieee.widen(tl.load(ptr + token * stride + cols, mask=(token < num_tokens) & (cols < N), other=0.0))


@triton.jit
def load_vector(ptr, start, COLS: tl.constexpr, N: tl.constexpr):
    """Elements `start` to start + COLS of a vector, fp32 [1, COLS]; 0 outside."""
    cols = start + tl.arange(0, COLS)[None, :]
    return ieee.widen(tl.load(ptr + cols, mask=cols < N, other=0.0))


@triton.jit
def store_rows(ptr, token, num_tokens, value, N: tl.constexpr, COLS: tl.constexpr):
    """Write whole rows, rounded already, side by side."""
    cols = tl.arange(0, COLS)[None, :]
    mask = (token < num_tokens) & (cols < N)
    tl.store(ptr + token * N + cols, ieee.narrow(value, ptr.dtype.element_ty), mask=mask)


@triton.jit
def row_rrms(ptr, stride, token, num_tokens, eps, N: tl.constexpr, ROWS: tl.constexpr):
    """1 / rms of the rows `token` -> [ROWS, 1]."""
    total = tl.zeros([ROWS, rms.CHUNK], tl.float32)
    for start in tl.static_range(0, N, rms.CHUNK):
        x = load_rows(ptr, stride, token, num_tokens, start, rms.CHUNK, N)
        total += x * x
    return rms.rrms(total, eps, N, ROWS)


def check_rows(names: str, *tensors) -> None:
    """Raises BadInput unless the tensors, named in `names`, are alike: [T, N], dtype, device, elements side by side."""
    first, first_name = tensors[0], names.split()[0]
    for name, x in zip(names.split(), tensors, strict=True):
        if x.dim() != 2 or not 1 <= x.shape[1] <= MAX_HIDDEN:
            raise bad(name, tuple(x.shape), f"2 dimensions, [tokens, hidden], hidden from 1 to {MAX_HIDDEN}")
        if x.shape != first.shape:
            raise bad(name, tuple(x.shape), f"the shape of {first_name}, {tuple(first.shape)}")
        check_alike(name, x, first_name, first)


def check_rounding(rounding: str, known: tuple[str, ...]) -> None:
    """Raises BadInput for a rounding that is not known."""
    if rounding not in known:
        raise bad("rounding", rounding, "one of " + ", ".join(known))
