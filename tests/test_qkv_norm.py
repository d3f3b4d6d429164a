"""The fused norm of Q, K and V against the eager chain: every mode, every head shape of the checkpoints, every bit."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.kernels import rms
from g4lab.kernels.qkv_norm import LAUNCHES, QKVLaunch, QKVMode, pick_launch, qkv_rmsnorm, qkv_rmsnorm_reference
from g4lab.quality.ulps import difference
from tests.norm_inputs import DEVICE, DTYPES, assert_same, draw, odd_rows, relative_error, warp_adds

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

IN_ORDER = functools.partial(qkv_rmsnorm_reference, mean_square=rms.mean_square_in_warp_order)
# On a GPU the eager chain itself is the reference, on 16 rows or more; on a CPU, the chain in a GPU's order.
EAGER = qkv_rmsnorm_reference if DEVICE == "cuda" else IN_ORDER


def checkpoint_shapes():
    """(mode, q heads, kv heads, head dim) of every layer of the four checkpoints at TP 1, 2 and 4."""
    layers = [layer for name in ("26b-a4b", "31b", "e4b", "e2b") for layer in spec(name).layers]
    return sorted(
        {
            (layer.qkv_mode, layer.num_q_heads // tp, max(1, layer.num_kv_heads // tp), layer.head_dim)
            for layer in layers
            for tp in (1, 2, 4)
        }
    )


def make(tokens, mode, hq, hkv, head_dim, dtype=torch.bfloat16, seed=0):
    """q, k and v as slices of one packed projection, their weights, and the keywords."""
    packed = draw(tokens, (hq + 2 * hkv) * head_dim, dtype=dtype, seed=seed, scale=2.0)
    q, k, v = packed.split([hq * head_dim, hkv * head_dim, hkv * head_dim], dim=1)
    q_weight, k_weight = (draw(head_dim, dtype=dtype, seed=seed + i) for i in (1, 2))
    if mode == "QK":
        v = None
    if mode == "Q":
        k = v = k_weight = None
    shape = {"mode": mode, "num_q_heads": hq, "num_kv_heads": hkv, "head_dim": head_dim}
    return packed, (q, k, v, q_weight, k_weight), shape


def assert_all_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_same(a, b)


@pytest.mark.parametrize("shape", checkpoint_shapes(), ids=str)
def test_the_checkpoints_shapes_bit_for_bit(shape):
    for dtype in DTYPES:
        packed, arguments, keywords = make(5 if DEVICE == "cpu" else 33, *shape, dtype=dtype)
        before = packed.clone()
        expected = EAGER(*arguments, **keywords)
        got = qkv_rmsnorm(*arguments, **keywords)
        assert_all_same(got, expected)
        mode, hq, hkv, head_dim = shape
        assert all(out is given for out, given in zip(got, arguments[:3], strict=True) if given is not None)
        used = {"QKV": hq + 2 * hkv, "QK": hq + hkv, "Q": hq}[mode] * head_dim
        assert torch.equal(packed[:, used:], before[:, used:]), "what the mode does not have is left alone"


@pytest.mark.parametrize("mode", QKVMode)
@pytest.mark.parametrize("tokens", [1, 2, 31, 257])
def test_any_number_of_tokens_in_any_launch(mode, tokens):
    """A row's bits depend neither on the rows beside it nor on the launch."""
    _, arguments, keywords = make(tokens, mode, 2, 1, 128)
    alone = [IN_ORDER(*arguments, **keywords)]
    for launch in (None, QKVLaunch(rows=1 if tokens < 4 else 32), QKVLaunch(rows=256, num_warps=4)):
        _, arguments, keywords = make(tokens, mode, 2, 1, 128)
        alone.append(qkv_rmsnorm(*arguments, **keywords, launch=launch))
    for other in alone[1:]:
        assert_all_same(other, alone[0])


def test_8192_tokens():
    _, arguments, keywords = make(8192, "QK", 1, 1, 128)
    assert_all_same(qkv_rmsnorm(*(a.clone() if a is not None else None for a in arguments), **keywords),
                    EAGER(*arguments, **keywords))  # fmt: skip


@pytest.mark.parametrize("mode", QKVMode)
def test_no_tokens(mode):
    _, arguments, keywords = make(0, mode, 4, 2, 32)
    q, k, v = qkv_rmsnorm(*arguments, **keywords)
    assert q.shape == (0, 128)
    assert (k is None, v is None) == {"QKV": (False, False), "QK": (False, False), "Q": (True, True)}[mode]
    assert v is None or v.shape == (0, 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_rows(dtype):
    q, k = odd_rows(256, dtype), odd_rows(256, dtype).flip(0).contiguous()
    keywords = {"mode": "QK", "num_q_heads": 1, "num_kv_heads": 1, "head_dim": 256}
    weights = draw(256, dtype=dtype), draw(256, dtype=dtype, seed=1)
    expected = IN_ORDER(q, k, None, *weights, **keywords)
    got = qkv_rmsnorm(q, k, None, *weights, **keywords)
    assert_all_same(got, expected)
    assert got[0][0].eq(0).all()
    assert got[0][4].isnan().all()
    assert (1 - got[2].flip(0)[7].float()).abs().max() <= 1e-6, "ones stay ones, but for eps"


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-6, 1e-5, 1.0])
def test_eps(eps):
    _, arguments, keywords = make(3, "QKV", 4, 2, 64, dtype=torch.float32)
    expected = IN_ORDER(*arguments, **keywords, eps=eps)
    assert_all_same(qkv_rmsnorm(*arguments, **keywords, eps=eps), expected)


@pytest.mark.parametrize("mode", QKVMode)
def test_weights_of_another_dtype(mode):
    _, (q, k, v, q_weight, k_weight), keywords = make(3, mode, 4, 2, 64)
    weights = q_weight.float() * 1.001, None if k_weight is None else k_weight.float() * 1.001
    assert_all_same(qkv_rmsnorm(q.clone(), *(x if x is None else x.clone() for x in (k, v)), *weights, **keywords),
                    IN_ORDER(q, k, v, *weights, **keywords))  # fmt: skip


def test_distance_from_fp64_and_from_eager():
    """In fp32 within the bound of the kernel's own sum. In bf16, one ulp from eager, where the two sums straddle a
    rounding boundary: twice their distance, over the spacing, of all values."""
    _, (q, *_, q_weight, _), keywords = make(64, "Q", 8, 2, 256, dtype=torch.float32)
    truth = q.double().unflatten(1, (8, 256))
    truth = truth * (truth.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * q_weight.double()
    got = qkv_rmsnorm(q.clone(), None, None, q_weight, None, **keywords)[0]
    error = (got.double() - truth.flatten(1)).abs()
    assert (error <= relative_error(warp_adds(256), 2) * truth.flatten(1).abs()).all()

    q, q_weight = q.bfloat16(), q_weight.bfloat16()
    eager = qkv_rmsnorm_reference(q, None, None, q_weight, None, **keywords)[0]
    found = difference(qkv_rmsnorm(q.clone(), None, None, q_weight, None, **keywords)[0], eager)
    assert found.max_ulp <= 1
    apart = relative_error(warp_adds(256), 2) + relative_error(256, 2)
    assert found.unequal <= 2 * apart / torch.finfo(torch.bfloat16).eps * found.compared


@given(st.data())
@settings(max_examples=30)
def test_any_views(data):
    """Rows lie apart by any stride, and q, k and v may be three tensors."""
    tokens, pad = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 9))
    head_dim = data.draw(st.sampled_from([8, 16, 64, 128]))
    hq, hkv = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(DTYPES))

    def view(heads, seed):
        return draw(tokens, heads * head_dim + pad, dtype=dtype, seed=seed)[:, pad:]

    arguments = (
        view(hq, 1),
        view(hkv, 2),
        view(hkv, 3),
        draw(head_dim, dtype=dtype),
        draw(2 * head_dim, dtype=dtype)[::2],
    )
    keywords = {"mode": "QKV", "num_q_heads": hq, "num_kv_heads": hkv, "head_dim": head_dim}
    expected = IN_ORDER(*arguments, **keywords)
    assert_all_same(qkv_rmsnorm(*arguments, **keywords), expected)


def test_pick_launch_is_data():
    assert pick_launch(1) == pick_launch(256) == LAUNCHES[0][1]
    assert pick_launch(257) == pick_launch(100_000) == LAUNCHES[-1][1]
    assert [pick_launch(n, 3, interpreted=True).rows for n in (1, 5, 4000)] == [4, 16, 1024]


def bad(name, value):
    return lambda arguments, keywords: (
        dict(arguments, **{name: value(arguments) if callable(value) else value}),
        keywords,
    )


BAD = {
    "mode: got 'KV'": lambda a, k: (a, dict(k, mode="KV")),
    "head_dim: got 48": lambda a, k: (a, dict(k, head_dim=48)),
    "v: got 'None', expected a tensor": bad("v", None),
    "num_q_heads: got 0": lambda a, k: (a, dict(k, num_q_heads=0)),
    r"q: got \(3, 8, 32\)": bad("q", lambda a: a["q"].unflatten(1, (8, 32))),
    r"k: got \(3, 128\)": bad("k", lambda a: a["q"][:, :128]),
    "k: got '2 tokens'": bad("k", lambda a: a["k"][:2]),
    "v: got torch.float32": bad("v", lambda a: a["v"].float()),
    "q: got torch.int32": bad("q", lambda a: a["q"].int()),
    "q: got 'stride 2'": bad("q", lambda a: torch.empty(3, 512, dtype=torch.bfloat16, device=DEVICE)[:, ::2]),
    r"q_weight: got \(64,\)": bad("q_weight", lambda a: a["q_weight"].repeat(2)),
    "k_weight: got torch.int64": bad("k_weight", lambda a: a["k_weight"].long()),
    "k_weight: got 'device meta'": bad("k_weight", lambda a: a["k_weight"].to("meta")),
    "k: got 'device meta'": bad("k", lambda a: a["k"].to("meta")),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    _, arguments, keywords = make(3, "QKV", 8, 2, 32)
    named = dict(zip(("q", "k", "v", "q_weight", "k_weight"), arguments, strict=True))
    named, keywords = BAD[message](named, keywords)
    with pytest.raises(BadInput, match=message):
        qkv_rmsnorm(**named, **keywords)


@pytest.mark.parametrize(("mode", "given"), [("QK", "v: got 'a tensor'"), ("Q", "k: got 'a tensor'")])
def test_a_tensor_that_the_mode_does_not_have(mode, given):
    _, arguments, keywords = make(3, "QKV", 8, 2, 32)
    with pytest.raises(BadInput, match=given):
        qkv_rmsnorm(*arguments, **dict(keywords, mode=mode))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 16, 64, 300, 4096])
def test_bits_on_the_gpu_and_in_a_graph(tokens):
    for shape in checkpoint_shapes():
        _, arguments, keywords = make(tokens, *shape)
        expected = IN_ORDER(*arguments, **keywords)
        if tokens >= 16:
            assert_all_same(EAGER(*arguments, **keywords), expected)
        kept = [None if a is None else a.clone() for a in arguments]
        graph = torch.cuda.CUDAGraph()
        qkv_rmsnorm(*kept, **keywords)
        with torch.cuda.graph(graph):
            got = qkv_rmsnorm(*arguments, **keywords)
        graph.replay()
        assert_all_same(got, expected)
