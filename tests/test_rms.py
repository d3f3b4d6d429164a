"""The order of a norm's sum, and the bits of fp8: what the norm kernels are made of."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from g4lab.kernels import ieee, rms
from tests.norm_inputs import DEVICE, DTYPES, draw, relative_error, warp_adds

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # the interpreter's, to fp16


def by_hand(row):
    """The order in words: lane t adds its fours of each 128, then its four sums, then the lanes by halves."""
    padded = row * row
    padded = torch.cat([padded, padded.new_zeros(-len(row) % 128)])
    lanes = []
    for t in range(32):
        sums = [padded[4 * t + j] for j in range(4)]
        for start in range(128, len(padded), 128):
            sums = [s + padded[start + 4 * t + j] for j, s in enumerate(sums)]
        lanes.append(((sums[0] + sums[1]) + sums[2]) + sums[3])
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0] * torch.tensor(1 / len(row), dtype=torch.float32)


@pytest.mark.parametrize("n", [8, 30, 64, 128, 200, 256, 512, 2816])
def test_the_warp_order_is_the_one_described(n):
    x = draw(3, n).cpu()
    got = rms.mean_square_in_warp_order(x)
    assert [float(v) for v in got[:, 0]] == [float(by_hand(row)) for row in x]


@pytest.mark.parametrize("n", [128, 256, 512, 1536, 2560, 2816, 5376])
def test_both_orders_are_within_their_bound_of_fp64(n):
    x = draw(64, n, seed=1)
    truth = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    bound = {rms.mean_square_in_warp_order: relative_error(warp_adds(n), 1), rms.mean_square: relative_error(n, 1)}
    for mean_square, limit in bound.items():
        got = rms.rms_norm_reference(x, mean_square=mean_square).double()
        assert ((got - truth).abs() <= limit * truth.abs()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("n", [128, 256, 512, 1536, 2560, 2816, 5376])
@pytest.mark.parametrize("tokens", [16, 17, 64, 1000, 8192])
def test_the_warp_order_is_eagers_on_a_gpu(n, tokens):
    """The claim that every exactness on a GPU rests on."""
    x = draw(tokens, n, seed=tokens)
    assert torch.equal(rms.mean_square(x), rms.mean_square_in_warp_order(x))


@triton.jit
def _fp8(x_ptr, out_ptr, N: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, ieee.fp8_bits(tl.load(x_ptr + at), MANTISSA, BIAS, LARGEST))


FP8 = [(torch.float8_e4m3fn, (3, 7, ieee.E4M3_LARGEST.value)), (torch.float8_e5m2, (2, 15, 0x7C))]


def fp8_bits(x, choices):
    out = torch.empty(x.numel(), dtype=torch.uint8, device=DEVICE)
    with ieee.launching(_fp8):
        _fp8[(1,)](x, out, x.numel(), *choices, **ieee.LAUNCH_OPTIONS)
    return out


def assert_fp8(x, dtype, choices):
    got, expected = fp8_bits(x, choices), x.to(dtype).view(torch.uint8)
    numbers = ~x.isnan()
    assert torch.equal(got[numbers], expected[numbers])
    assert got[~numbers].view(dtype).float().isnan().all()


@pytest.mark.parametrize("largest", [0x7E, 0x7F])
def test_beyond_e4m3s_448_both_conversions_of_pytorch(largest):
    """464 is halfway to 480 and rounds to the even 448; what is above becomes 448, or NaN (0x7F) as before 2.12."""
    x = torch.tensor([448.0, 464.0, -464.0, 464.0, -480.0, math.inf, 3e38, 0.0])
    x[3] = x[3].nextafter(x[5])
    expected = [0x7E, 0x7E, 0xFE, largest, 0x80 | largest, largest, largest, 0]
    assert fp8_bits(x.to(DEVICE), (3, 7, largest)).tolist() == expected


@pytest.mark.parametrize(("dtype", "choices"), FP8)
def test_every_bf16_value_rounds_to_fp8_as_pytorch_rounds_it(dtype, choices):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert_fp8(every.float().to(DEVICE), dtype, choices)


@pytest.mark.parametrize(("dtype", "choices"), FP8)
@given(st.lists(st.floats(width=32), min_size=16, max_size=16))
def test_any_fp32_value_rounds_to_fp8_as_pytorch_rounds_it(dtype, choices, values):
    assert_fp8(torch.tensor(values, device=DEVICE), dtype, choices)


@triton.jit
def _round(x_ptr, out_ptr, N: tl.constexpr):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    at = tl.arange(0, N)
    tl.store(out_ptr + at, ieee.narrow(ieee.round_to(tl.load(x_ptr + at), dtype), dtype))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=8, max_size=8))
def test_rounding_to_16_bits_is_pytorchs(dtype, values):
    x = torch.tensor([*values, *(math.nextafter(v, 0) if math.isfinite(v) else v for v in values)], device=DEVICE)
    out = torch.empty(16, dtype=dtype, device=DEVICE)
    with ieee.launching(_round):
        _round[(1,)](x, out, 16, **ieee.LAUNCH_OPTIONS)
    assert torch.equal(out, x.to(dtype))
