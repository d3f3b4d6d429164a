"""The router's norm and the layers' ends against their eager chains, in every rounding, bit for bit."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.kernels import residual_norm as ends
from g4lab.kernels import rms
from g4lab.kernels import router_norm as router
from g4lab.kernels.residual_norm import dual_residual_norm, residual_norm
from g4lab.kernels.router_norm import folded_scale, router_norm, router_norm_reference
from g4lab.kernels.rows import RowLaunch, pick_launch
from g4lab.quality.ulps import difference
from tests.norm_inputs import DEVICE, DTYPES, assert_same, draw, odd_rows, relative_error, warp_adds

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

ORDER = {} if DEVICE == "cuda" else {"mean_square": rms.mean_square_in_warp_order}
HIDDEN = sorted({spec(name).hidden_size for name in ("26b-a4b", "31b", "e4b", "e2b", "tiny-moe")})
OPERATIONS = [
    *(("router", rounding, None) for rounding in router.ROUNDINGS),
    *((name, r, s) for name in ("residual", "dual") for r in ends.ROUNDINGS for s in (None, 0.37)),
]


def operation(name, rounding, scalar, rows, hidden, dtype):
    """(launch, reference) of one operation on `rows`, a function seed -> [T, hidden]."""
    weights = [draw(hidden, dtype=dtype, seed=10 + i) for i in range(3)]
    scalar = None if scalar is None else torch.tensor([scalar], dtype=dtype, device=DEVICE)
    inputs = {
        "router": (rows(0), weights[0].abs() + 0.5),
        "residual": (rows(0), weights[0], rows(1), scalar),
        "dual": (rows(0), weights[0], rows(1), weights[1], weights[2], rows(2), scalar),
    }[name]
    launch, reference = {
        "router": (router_norm, router_norm_reference),
        "residual": (residual_norm, ends.residual_norm_reference),
        "dual": (dual_residual_norm, ends.dual_residual_norm_reference),
    }[name]
    keep = {"rounding": rounding}
    return functools.partial(launch, *inputs, **keep), functools.partial(reference, *inputs, **keep)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("named", OPERATIONS, ids=str)
def test_the_checkpoints_hidden_sizes_bit_for_bit(named, hidden):
    for dtype in DTYPES:
        rows = lambda seed, dtype=dtype: draw(4 if DEVICE == "cpu" else 17, hidden, dtype=dtype, seed=seed)  # noqa: E731
        launch, reference = operation(*named, rows, hidden, dtype)
        got = launch()
        assert got.dtype == dtype
        assert_same(got, reference(**ORDER))


@pytest.mark.parametrize("named", OPERATIONS, ids=str)
def test_odd_rows(named):
    for dtype in DTYPES:
        rows = lambda seed, dtype=dtype: odd_rows(200, dtype).roll(seed, 0).contiguous()  # noqa: E731
        launch, reference = operation(*named, rows, 200, dtype)
        got = launch()
        assert_same(got, reference(mean_square=rms.mean_square_in_warp_order))
        assert got[4].isnan().all(), "row 4 has a NaN"


@pytest.mark.parametrize("tokens", [0, 1, 3, 90])
@pytest.mark.parametrize("named", OPERATIONS[::3], ids=str)
def test_any_number_of_tokens_in_any_launch(named, tokens):
    rows = lambda seed: draw(tokens, 128, dtype=torch.bfloat16, seed=seed)  # noqa: E731
    launch, reference = operation(*named, rows, 128, torch.bfloat16)
    expected = reference(mean_square=rms.mean_square_in_warp_order)
    for choice in (None, RowLaunch(rows=1 if tokens < 8 else 16, num_warps=1), RowLaunch(rows=128)):
        got = launch(launch=choice)
        assert got.shape == (tokens, 128)
        assert_same(got, expected)


@given(st.data())
@settings(max_examples=25)
def test_any_rows(data):
    tokens, hidden, pad = (data.draw(st.integers(*bounds)) for bounds in ((1, 4), (1, 300), (0, 7)))
    dtype, named = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(OPERATIONS))

    def rows(seed):
        return draw(tokens, hidden + pad, dtype=dtype, seed=seed)[:, pad:]

    launch, reference = operation(*named, rows, hidden, dtype)
    assert_same(launch(), reference(mean_square=rms.mean_square_in_warp_order))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1.0])
def test_eps(eps):
    for named in OPERATIONS[::3]:
        launch, reference = operation(*named, lambda seed: draw(3, 256, seed=seed), 256, torch.float32)
        assert_same(launch(eps=eps), reference(eps=eps, mean_square=rms.mean_square_in_warp_order))


def test_transformers_rounding_is_the_transformers_module():
    """The reference against the module itself, and the kernel against the reference's own order of the sum."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

    norm = Gemma4RMSNorm(2816, with_scale=False)
    x, scale = draw(33, 2816, dtype=torch.bfloat16).cpu(), draw(2816, dtype=torch.bfloat16, seed=1).cpu()
    expected = norm(x) * scale * 2816**-0.5
    assert_same(router_norm_reference(x, scale), expected)


def test_the_roundings_differ_in_bf16_and_agree_in_fp32():
    x, scale = draw(64, 2816), draw(2816, seed=1).abs() + 0.5
    in_fp32 = [router_norm(x, scale, rounding=r) for r in router.ROUNDINGS]
    for other in in_fp32[1:]:
        bound = 2 * (relative_error(warp_adds(2816), 3) + torch.finfo(torch.float32).eps)
        assert ((other - in_fp32[0]).abs() <= bound * in_fp32[0].abs()).all()
    x, scale = x.bfloat16(), scale.bfloat16()
    in_bf16 = {r: router_norm(x, scale, rounding=r) for r in router.ROUNDINGS}
    for name in ("two_step", "sglang", "fp32"):
        found = difference(in_bf16[name], in_bf16["transformers"])
        assert found.unequal > 0
        # Each side rounds at most three times (the root, the fold, the result), by half of eps each; an ulp is at least
        # half of eps.
        assert found.max_ulp <= 6


def test_sglangs_root_is_rounded_to_the_models_dtype():
    scale = torch.ones(2816, dtype=torch.bfloat16)
    root = folded_scale(scale)[0].item()
    assert root == torch.tensor(2816**-0.5).bfloat16().item() != pytest.approx(2816**-0.5, rel=1e-4)
    assert folded_scale(torch.ones(4096, dtype=torch.bfloat16))[0].item() == 4096**-0.5


@pytest.mark.parametrize("named", OPERATIONS, ids=str)
def test_distance_from_fp64(named):
    """In fp32. The dual form's second norm works on a sum whose error may be amplified, so it is left to the bits."""
    if named[0] == "dual":
        named = ("residual", *named[1:])
    name, _, scalar = named
    launch, _ = operation(*named, lambda seed: draw(64, 2816, seed=seed), 2816, torch.float32)
    x, residual = draw(64, 2816).double(), draw(64, 2816, seed=1).double()
    normed = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * draw(2816, seed=10).double()
    bound = relative_error(warp_adds(2816), 4)
    if name == "router":
        truth = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (draw(2816, seed=10).double().abs() + 0.5)
        truth = truth * 2816**-0.5
        limit = (bound + torch.finfo(torch.float32).eps) * truth.abs()
    else:
        truth = (normed + residual) * (scalar or 1)
        limit = 2 * bound * (normed.abs() + residual.abs()) * (scalar or 1)
    assert ((launch().double() - truth).abs() <= limit).all()


def test_pick_launch():
    assert [pick_launch(1, hidden).num_warps for hidden in (128, 2816, 4096, 5376, 16384)] == [4, 4, 4, 8, 16]
    assert math.log2(pick_launch(7, 128, interpreted=True).rows) == 3


BAD = {
    r"x: got \(3, 2, 64\)": lambda x, w: router_norm(x.unflatten(1, (2, 64)), w),
    r"x: got \(3, 0\)": lambda x, w: router_norm(x[:, :0], w),
    "x: got torch.int32": lambda x, w: router_norm(x.int(), w),
    "x: got 'stride 2'": lambda x, w: router_norm(x[:, ::2], w[::2]),
    r"scale: got \(64,\)": lambda x, w: router_norm(x, w[:64]),
    "scale: got torch.float32": lambda x, w: router_norm(x, w.float()),
    "scale: got 'device meta'": lambda x, w: router_norm(x, w.to("meta")),
    "rounding: got 'eager'": lambda x, w: router_norm(x, w, rounding="eager"),
    r"residual: got \(2, 128\)": lambda x, w: residual_norm(x, w, x[:2]),
    "residual: got torch.float32": lambda x, w: residual_norm(x, w, x.float()),
    "residual: got 'device meta'": lambda x, w: residual_norm(x, w, x.to("meta")),
    r"scalar: got '\(128,\)": lambda x, w: residual_norm(x, w, x, w),
    "rounding: got 'sglang'": lambda x, w: residual_norm(x, w, x, rounding="sglang"),
    "x2: got": lambda x, w: dual_residual_norm(x, w, x[:1], w, w, x),
    "weight2: got": lambda x, w: dual_residual_norm(x, w, x, w[:3], w, x),
    "weight: got": lambda x, w: dual_residual_norm(x, w, x, w, w.int(), x),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    x, w = draw(3, 128, dtype=torch.bfloat16), draw(128, dtype=torch.bfloat16, seed=1)
    with pytest.raises(BadInput, match=message):
        BAD[message](x, w)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 64, 1000, 8192])
def test_bits_on_the_gpu(tokens):
    for hidden in HIDDEN:
        for named in OPERATIONS:
            rows = lambda seed, hidden=hidden: draw(tokens, hidden, dtype=torch.bfloat16, seed=seed)  # noqa: E731
            launch, reference = operation(*named, rows, hidden, torch.bfloat16)
            got = launch()
            assert_same(got, reference(mean_square=rms.mean_square_in_warp_order))
            if tokens >= 16:
                assert_same(got, reference())
