"""RMSNorm's pieces: the eager reference, and the root mean square in one fixed order, shared by the norm kernels.

    norm(x) = x * rsqrt(mean(x**2) + eps) * weight          fp32 inside, one rounding to x's dtype at the end

Order. fp32 addition is not associative, so "equal to eager" is a claim about an order of additions. PyTorch's mean
over a contiguous row of at least 128 elements reads four neighbours per thread and, for 16 rows or more, gives a row to
one warp (its reduction's launch configuration, PyTorch 2.13): lane t adds its elements of each 128 one after another,
then its four sums from left to right, then the 32 lanes by halves at distance 16, 8, 4, 2, 1, and multiplies by 1/N.
The kernels add in that order whatever the batch, so a row's bits do not depend on the rows beside it; eager with fewer
than 16 rows gives a row more threads, and with them another order. Below 128 elements eager's order is another one too.
"""

import torch
import triton
import triton.language as tl

from g4lab.kernels import ieee

LANES, VECTOR = tl.constexpr(32), tl.constexpr(4)
CHUNK = tl.constexpr(128)  # LANES * VECTOR


def mean_square(x):
    """mean(x**2) over the last dimension, as eager PyTorch orders it on x's device. x fp32 [..., N] -> [..., 1]."""
    return x.pow(2).mean(-1, keepdim=True)


def mean_square_in_warp_order(x):
    """mean(x**2) in the kernels' order, operator by operator, on any device. x fp32 [..., N], N even -> [..., 1]."""
    n = x.shape[-1]
    lanes = min(LANES.value, max(1, triton.next_power_of_2(n) // VECTOR.value))
    vector = min(VECTOR.value, triton.next_power_of_2(n))
    padded = torch.nn.functional.pad(x * x, (0, -n % (lanes * vector)))
    first, *chunks = padded.unflatten(-1, (-1, lanes, vector)).unbind(-3)
    for chunk in chunks:
        first = first + chunk
    total, *rest = first.unbind(-1)
    for each in rest:
        total = total + each
    while total.shape[-1] > 1:
        low, high = total.chunk(2, dim=-1)
        total = low + high
    return total * torch.tensor(1 / n, dtype=torch.float32, device=x.device)


def rms_norm_reference(x, weight=None, eps=1e-6, *, mean_square=mean_square):
    """The eager chain of Gemma-4's RMSNorm: fp32 with one rounding to x's dtype, as transformers and SGLang have it.

    x [..., N]; weight [N] or None for a norm without one. `mean_square` may be replaced to fix the order of the sum.
    """
    normed = x.float()
    normed = normed * torch.rsqrt(mean_square(normed) + eps)
    if weight is not None:
        normed = normed * weight.float()
    return normed.to(x.dtype)


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] -> its left and its right half."""
    return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, COLS // 2]), [0, 2, 1]))


@triton.jit
def _by_lane(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] -> [ROWS, COLS / 4]: the sum of each lane's four neighbours, ((x0 + x1) + x2) + x3."""
    even, odd = tl.split(tl.reshape(x, [ROWS, COLS // 4, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return ((x0 + x1) + x2) + x3


@triton.jit
def chunk_sum(x, ROWS: tl.constexpr):
    """[ROWS, CHUNK] -> [ROWS]: within the lanes, then between them."""
    return ieee.butterfly_sum(_by_lane(x, ROWS, CHUNK), ROWS, LANES)


@triton.jit
def head_rrms(low, high, eps, ROWS: tl.constexpr, HALF: tl.constexpr):
    """1 / rms of heads given as their two halves, fp32 [ROWS, HALF] each -> [ROWS, 1]. HALF: 4 to 256."""
    low, high = low * low, high * high
    if HALF == 256:
        c0, c1 = _halves(low, ROWS, HALF)
        c2, c3 = _halves(high, ROWS, HALF)
        total = chunk_sum(((c0 + c1) + c2) + c3, ROWS)
    elif HALF == 128:
        total = chunk_sum(low + high, ROWS)
    else:  # a head within a chunk: its halves are the first step between lanes
        total = ieee.butterfly_sum(_by_lane(low, ROWS, HALF) + _by_lane(high, ROWS, HALF), ROWS, HALF // 4)
    return tl.rsqrt(total * (1 / (2 * HALF)) + eps)[:, None]


@triton.jit
def rrms(total, eps, N: tl.constexpr, ROWS: tl.constexpr):
    """1 / rms of rows of N from what each place of a chunk has added up, fp32 [ROWS, CHUNK] -> [ROWS, 1]."""
    return tl.rsqrt(chunk_sum(total, ROWS) * (1 / N) + eps)[:, None]
