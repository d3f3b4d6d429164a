"""Noise of a known size in ulps, the router norm's roundings as changes, and what SGLang makes of H**-0.5."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.kernels.router_norm import ROUNDINGS, router_norm_reference
from g4lab.quality.ulp_noise import Noise, Rounding, nudge, root_size_error

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES)
@given(ulps=st.integers(0, 5), seed=st.integers(0, 1000))
def test_every_element_moves_by_that_many_neighbours(dtype, ulps, seed):
    x = torch.randn(64, generator=generator(seed)).to(dtype)
    x[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)  # across zero, and to the other side of a power of two
    up, down = x, x
    for _ in range(ulps):
        up = torch.nextafter(up, torch.tensor(math.inf, dtype=dtype))
        down = torch.nextafter(down, torch.tensor(-math.inf, dtype=dtype))
    moved = nudge(x, ulps, generator(seed))
    assert ((moved == up) | (moved == down)).all()


def test_half_go_up_and_a_share_stays():
    x = torch.ones(100_000, dtype=torch.bfloat16)
    moved = nudge(x, 1, generator(), share=0.25)
    sigma = math.sqrt(100_000 * 0.25 * 0.75)
    assert abs((moved != x).sum().item() - 25_000) < 5 * sigma
    assert abs((moved > x).sum().item() - 12_500) < 5 * math.sqrt(100_000 / 8 * 7 / 8)
    assert nudge(x, 3, generator(), share=0.0).equal(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_stays_a_number(dtype):
    x = torch.tensor([1.0, -1.0]).mul(torch.finfo(dtype).max).to(dtype).repeat(8)
    assert nudge(x, 4, generator()).isfinite().all()


def test_bad_noise_is_named():
    x = torch.ones(4)
    with pytest.raises(BadInput, match="float64"):
        nudge(x.double(), 1, generator())
    with pytest.raises(BadInput, match="ulps"):
        nudge(x, -1, generator())
    with pytest.raises(BadInput, match="share"):
        nudge(x, 1, generator(), share=1.5)


def test_noise_draws_on_and_every_copy_starts_anew():
    x, noise = torch.ones(64, dtype=torch.bfloat16), Noise(2, 0.5, seed=3)
    first, again = noise.make(), noise.make()
    a, b = first(None, None, x), first(None, None, x)
    assert not a.equal(b)
    assert again(None, None, x).equal(a)
    assert not Noise(2, 0.5, seed=4).make()(None, None, x).equal(a)
    assert noise.mean_ulps == 1.0


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_rounding_is_the_reference(rounding):
    hidden, scale = torch.randn(5, 128, generator=generator()).bfloat16(), torch.ones(128, dtype=torch.bfloat16)
    expected = router_norm_reference(hidden, scale, 1e-5, rounding=rounding)
    assert Rounding(rounding, eps=1e-5).make()(hidden, scale, None).equal(expected)


def test_the_root_is_exact_for_powers_of_four_and_elsewhere_within_half_an_ulp():
    assert root_size_error(4096, torch.bfloat16) == 0.0
    for name in ("26b-a4b", "31b", "tiny-moe"):
        error = root_size_error(spec(name).hidden_size, torch.bfloat16)
        assert 0 < abs(error) <= 2**-8
    # bf16 has 0.018798828125 = 77 / 4096 beside 2816**-0.5 = 0.0188445...; the next one up is 77.5 / 4096.
    assert root_size_error(2816, torch.bfloat16) == pytest.approx(77 / 4096 * math.sqrt(2816) - 1, abs=1e-12)


def test_sglang_makes_the_root_in_the_models_dtype():
    found = importlib.util.find_spec("sglang")
    if found is None:
        pytest.skip("SGLang is not installed")
    srt = Path(next(iter(found.submodule_search_locations))) / "srt"
    router = (srt / "models" / "gemma4_causal.py").read_text().split("class Gemma4Router")[1].split("\nclass ")[0]
    assert "torch.tensor(self.hidden_size**-0.5)" in router  # no dtype: the default one at that moment
    assert "with set_default_torch_dtype(model_config.dtype)" in (srt / "model_loader" / "loader.py").read_text()
