"""Differences in ulps: what one step is, at a number, near zero and at no number, and that parts add up."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g4lab.quality.ulps import MOST, Difference, difference, spacing

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1.0, -3.5, 0.3, 1e-3, 0.0])
def test_the_next_value_is_one_ulp_away(dtype, value):
    expected = torch.tensor([value], dtype=dtype)
    up = torch.nextafter(expected, torch.tensor([math.inf], dtype=dtype))
    found = difference(up, expected)
    assert (found.compared, found.unequal, found.ulps) == (1, 1, {1: 1})
    assert found.max_abs == float(up.double() - expected.double())


def test_a_half_of_the_other_dtype_is_no_whole_ulp():
    found = difference(torch.tensor([1 + 2**-9]), torch.tensor([1.0]), torch.bfloat16)
    assert (found.max_ulp, found.ulps) == (0.25, {1: 1})


def test_no_numbers_are_equal_only_to_themselves():
    nan, inf = math.nan, math.inf
    found = difference(torch.tensor([nan, inf, -0.0, nan, inf, 1.0]), torch.tensor([nan, inf, 0.0, 1.0, -inf, nan]))
    assert (found.unequal, found.nan_disagreements, found.max_abs) == (3, 2, inf)
    assert found.ulps == {MOST: 3}


def test_the_histogram_is_exact_for_few_ulps_and_coarse_beyond():
    steps = torch.tensor([1.0, 2, 16, 17, 32, 33, 1e9], dtype=torch.float64)
    found = difference(1 + steps * torch.finfo(torch.float32).eps, torch.ones(7), torch.float32)
    assert found.ulps == {1: 1, 2: 1, 16: 1, 32: 2, 64: 1, MOST: 1}


@given(st.lists(st.tuples(st.floats(-4, 4, width=16), st.floats(-4, 4, width=16)), max_size=20), st.integers(0, 20))
def test_parts_add_up_to_the_whole(pairs, cut):
    got, expected = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float16) for i in (0, 1))
    parts = difference(got[:cut], expected[:cut]) + difference(got[cut:], expected[cut:])
    assert parts == difference(got, expected)
    assert parts + Difference() == parts
    assert sum(parts.ulps.values()) == parts.unequal <= parts.compared


@pytest.mark.parametrize("dtype", DTYPES)
def test_spacing_is_the_step_up(dtype):
    x = torch.tensor([1.0, 1.5, 2.0, 1000.0, 0.1], dtype=dtype)
    up = torch.nextafter(x, torch.tensor(math.inf, dtype=dtype))
    assert spacing(x.double(), dtype).equal(up.double() - x.double())
    assert spacing(torch.tensor([math.inf, math.nan]).double(), dtype).isinf().all()
