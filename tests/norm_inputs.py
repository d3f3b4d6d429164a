"""Rows that norms meet, ordinary and not, and what a norm in fp32 may be off by."""

import math

import torch

from g4lab import env
from g4lab.quality.ulps import difference

DEVICE = "cuda" if env.has_gpu() else "cpu"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def odd_rows(n, dtype):
    """[8, n]: zeros, subnormals, values whose squares overflow, an infinity, a NaN, negative zeros, one spike, ones."""
    x = draw(8, n, dtype=torch.float32, seed=5)
    info = torch.finfo(dtype)
    x[0] = 0.0
    x[1] = info.smallest_normal / 4
    x[2] *= min(info.max / 8, 1e30)
    x[3, n // 2] = math.inf
    x[4, 0] = math.nan
    x[5] = -0.0
    x[6, 1:] *= 1e-4
    x[7] = 1.0
    return x.clamp(-info.max, info.max).where(x.isfinite(), x).to(dtype)


def assert_same(got, expected):
    """Every value and every NaN."""
    found = difference(got, expected)
    assert (found.unequal, found.nan_disagreements) == (0, 0), found


def relative_error(adds, after):
    """Bound of the relative error of a norm in fp32 whose mean takes `adds` additions, in a row.

    u = eps / 2 for the square, each addition, the product with 1/N, its constant and the sum with eps; half of that in
    the root; two for 1 / sqrt in the interpreter, four for a GPU's rsqrt; one for each of `after` products.
    """
    u = torch.finfo(torch.float32).eps / 2
    return ((adds + 4) / 2 + (4 if DEVICE == "cuda" else 2) + after) * u * 1.01  # terms of second order


def warp_adds(n):
    """Additions that one value passes in the kernels' order."""
    return math.ceil(n / 128) + 3 + 5
