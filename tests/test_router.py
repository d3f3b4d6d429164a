"""The fused router against the eager chain: every bit, every tie, every kind of bad row."""

import ast
import functools
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab import env
from g4lab.errors import BadInput
from g4lab.kernels import router
from g4lab.kernels.router import RouterLaunch, pick_launch, route, route_reference
from g4lab.quality.router_chains import softmax_in_cuda_order, transformers_chain
from g4lab.quality.router_probe import DTYPES, LOGITS, compare, probe

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

DEVICE = "cuda" if env.has_gpu() else "cpu"
CUDA_ORDER = functools.partial(route_reference, softmax=softmax_in_cuda_order)
# On a GPU the eager chain itself is the reference; on a CPU, the chain with the softmax as a GPU orders it.
EAGER = route_reference if DEVICE == "cuda" else CUDA_ORDER


def draw(kind, tokens, experts, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = LOGITS[kind]((tokens, experts), generator).to(DEVICE, DTYPES[dtype])
    return logits, (torch.rand(experts, generator=generator) + 0.5).to(DEVICE, DTYPES[dtype])


def assert_same(got, expected, dtype):
    found = compare(got, expected, dtype)
    assert found["set_disagreements"] == 0
    assert found["weights_unequal"] == 0, found["ulps"]


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_rounding_is_bit_identical(dtype, kind):
    result = probe(4096, dtype=dtype, logits=kind, device=DEVICE, reference=EAGER, seed=3)
    assert result.bit_identical, result.summary()
    assert result.weights_compared == 4096 * 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp32_rounding_is_the_chain_in_fp32(dtype):
    logits, scale = draw("normal", 4096, 128, dtype)
    expected = EAGER(logits, scale, 8, rounding="fp32")
    assert_same(route(logits, scale, 8, rounding="fp32"), expected, torch.float32)


@pytest.mark.parametrize(
    ("experts", "top_k"), [(1, 1), (2, 2), (8, 2), (60, 5), (128, 8), (129, 3), (384, 12), (1024, 16)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(experts, top_k, dtype):
    logits, scale = draw("tied", 33, experts, dtype)
    weights, ids = route(logits, scale, top_k)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int32
    assert weights.shape == ids.shape == (33, top_k)
    assert_same((weights, ids), EAGER(logits, scale, top_k), DTYPES[dtype])
    chosen = logits.gather(1, ids.long())
    assert (chosen[:, :-1] >= chosen[:, 1:]).all(), "ids come by falling logit"


@pytest.mark.skipif(DEVICE == "cuda", reason="compares with the CPU's own softmax")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_distance_from_the_cpus_own_eager_chain(dtype):
    """The CPU's softmax has another exp and sum order, so a weight differs where the two straddle a rounding boundary.

    Then the softmax is one ulp off; times a scale with mantissa below 2, and rounded, at most two. How often: twice
    the fp32 distance, measured on the same logits in fp32, over the spacing of the dtype.
    """
    in_fp32 = probe(4096, dtype="float32", seed=1)
    result = probe(4096, dtype=dtype, seed=1)
    assert result.set_disagreements == 0
    assert result.max_ulp <= 2
    straddle = 2 * in_fp32.max_ulp * torch.finfo(torch.float32).eps / torch.finfo(DTYPES[dtype]).eps
    assert result.weights_unequal <= straddle * result.weights_compared


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_row_follows_the_order_by_value_then_id(data):
    values = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf, math.nan])
    experts = data.draw(st.integers(1, 12))
    top_k = data.draw(st.integers(1, experts))
    dtype = data.draw(st.sampled_from(list(DTYPES.values())))
    row = data.draw(st.lists(values, min_size=experts, max_size=experts))
    logits = torch.tensor([row], dtype=dtype, device=DEVICE)
    weights, ids = route(logits, torch.ones(experts, dtype=dtype, device=DEVICE), top_k)

    def rank(e):
        zero = math.copysign(1, row[e]) if DEVICE == "cuda" and row[e] == 0 else 0
        return (math.isnan(row[e]), 0 if math.isnan(row[e]) else -row[e], -zero, e)

    expected = sorted(range(experts), key=rank)[:top_k]
    assert ids.tolist() == [expected]
    chosen = [row[e] for e in expected]
    if any(map(math.isnan, chosen)) or math.isinf(chosen[0]):
        assert weights.isnan().all()
    else:
        # At most K roundings of at most half an ulp each, of weights that sum to one.
        assert abs(weights.sum().item() - 1) <= top_k * torch.finfo(dtype).eps / 2


def test_nan_is_chosen_last_and_shows():
    nan = math.nan
    logits = torch.tensor([[nan, 1.0, nan, 3.0, 2.0], [nan, nan, nan, 3.0, nan], [nan] * 5], device=DEVICE)
    weights, ids = route(logits, torch.ones(5, device=DEVICE), 3)
    assert ids.tolist() == [[3, 4, 1], [3, 0, 1], [0, 1, 2]]
    assert weights[0].isfinite().all()
    assert weights[1:].isnan().all()
    without = logits[:1].nan_to_num(nan=-math.inf)
    assert_same((weights[:1], ids[:1]), EAGER(without, torch.ones(5, device=DEVICE), 3), torch.float32)


def test_nan_payloads_and_signs_are_all_nan():
    bits = torch.tensor([0x7FC0, -0x40, 0x7F81, -0x7F, 0x3F80], dtype=torch.int16)  # two +NaN, two -NaN, 1.0
    logits = bits.view(torch.bfloat16)[None].to(DEVICE)
    assert logits[0, :4].isnan().all()
    _, ids = route(logits, torch.ones(5, dtype=torch.bfloat16, device=DEVICE), 2)
    assert ids.tolist() == [[4, 0]]


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_cuda_ranks_negative_zero_below_positive_zero(dtype):
    """The kernel as a GPU launches it: the sign decides between zeros, as it does in CUDA's topk."""
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0]], dtype=dtype, device=DEVICE)
    weights, ids = torch.empty(1, 3, device=DEVICE), torch.empty(1, 3, dtype=torch.int32, device=DEVICE)
    scale = torch.ones(4, dtype=dtype, device=DEVICE)
    constants = router._constants(4, 3, "eager", RouterLaunch(), signed_zero=True)
    router._route_kernel[(1,)](logits, scale, weights, ids, 1, *logits.stride(), **constants, num_warps=1)
    assert ids.tolist() == [[1, 3, 0]]
    assert weights.unique().numel() == 1


def test_strided_logits_and_scale():
    logits, scale = draw("tied", 40, 128, "bfloat16")
    expected = EAGER(logits, scale, 8)
    padded = torch.full((40, 200), 99.0, dtype=logits.dtype, device=DEVICE)
    padded[:, 30:158] = logits
    every_other = torch.full((80, 256), 99.0, dtype=logits.dtype, device=DEVICE)
    every_other[::2, ::2] = logits
    views = [padded[:, 30:158], every_other[::2, ::2], logits.t().contiguous().t(), logits[:1].expand(40, 128)]
    for view in views[:3]:
        assert_same(route(view, scale, 8), expected, logits.dtype)
    assert_same(route(views[3], scale, 8), EAGER(views[3], scale, 8), logits.dtype)
    spread = torch.stack([scale, -scale], dim=1)[:, 0]
    assert_same(route(logits, spread, 8), expected, logits.dtype)


@pytest.mark.parametrize("scale_dtype", DTYPES.values())
def test_scale_of_another_dtype_is_rounded_to_the_logits(scale_dtype):
    logits, _ = draw("normal", 500, 128, "bfloat16")
    scale = (torch.rand(128, generator=torch.Generator().manual_seed(5)) * 2 - 1).to(DEVICE, scale_dtype)
    for rounding in router.ROUNDINGS:
        expected = EAGER(logits, scale, 8, rounding=rounding)
        assert_same(route(logits, scale, 8, rounding=rounding), expected, torch.float32)


def test_no_tokens():
    weights, ids = route(torch.empty(0, 128, device=DEVICE), torch.ones(128, device=DEVICE), 8)
    assert weights.shape == ids.shape == (0, 8)


def test_result_does_not_depend_on_the_launch():
    logits, scale = draw("tied", 37, 128, "bfloat16")
    expected = route(logits, scale, 8)
    for launch in (RouterLaunch(1), RouterLaunch(16), RouterLaunch(64)):
        weights, ids = route(logits, scale, 8, launch=launch)
        assert torch.equal(weights, expected[0])
        assert torch.equal(ids, expected[1])


def test_pick_launch():
    assert all(pick_launch(t) == RouterLaunch(block_t=1, num_warps=1) for t in (0, 1, 64, 16384))
    assert [pick_launch(t, interpreted=True).block_t for t in (0, 1, 7, 5000)] == [1, 1, 8, 1024]


GOOD = {"logits": torch.zeros(2, 8), "per_expert_scale": torch.ones(8), "top_k": 2, "rounding": "eager"}
BAD = {
    "top_k above E": ({"top_k": 9}, "top_k: got 9, expected between 1 and 8"),
    "top_k zero": ({"top_k": 0}, "top_k: got 0"),
    "top_k above 16": ({"logits": torch.zeros(2, 64), "per_expert_scale": torch.ones(64), "top_k": 17}, "1 and 16"),
    "other device": ({"per_expert_scale": torch.ones(8, device="meta")}, "per_expert_scale: got 'device meta'"),
    "integer logits": ({"logits": torch.zeros(2, 8, dtype=torch.int32)}, "logits: got torch.int32"),
    "double logits": ({"logits": torch.zeros(2, 8, dtype=torch.float64)}, "logits: got torch.float64"),
    "double scale": ({"per_expert_scale": torch.ones(8, dtype=torch.float64)}, "per_expert_scale: got torch.float64"),
    "three dimensions": ({"logits": torch.zeros(1, 2, 8)}, "logits: got (1, 2, 8), expected 2 dimensions"),
    "too many experts": ({"logits": torch.zeros(1, 1025), "per_expert_scale": torch.ones(1025)}, "1025 experts"),
    "no experts": ({"logits": torch.zeros(1, 0), "per_expert_scale": torch.ones(0)}, "0 experts"),
    "scale of another length": ({"per_expert_scale": torch.ones(7)}, "per_expert_scale: got (7,), expected shape (8,)"),
    "rounding": ({"rounding": "bf16"}, "rounding: got 'bf16', expected one of eager, fp32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case):
    change, expected = BAD[case]
    with pytest.raises(BadInput) as error:
        route(**{**GOOD, **change})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_is_sglangs_chain(dtype):
    """The function that SGLang defines inside Gemma4MoE, taken from its installed source and run beside ours.

    On the CPU torch.topk gives a tie for the last place to any id, so those rows are left out there.
    """
    origin = importlib.util.find_spec("sglang").origin
    source = Path(origin).parent / "srt" / "models" / "gemma4_causal.py"
    functions = [n for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.FunctionDef)]
    (chain,) = [n for n in functions if n.name == "routing_function"]
    logits, scale = (x.cpu() for x in draw("normal", 512, 128, dtype))
    best = logits.float().sort(dim=1, descending=True).values
    logits = logits[best[:, 7] > best[:, 8]]
    assert len(logits) > 400
    scope = {"torch": torch, "per_expert_scale": scale}
    exec(compile(ast.Module([chain], []), str(source), "exec"), scope)
    assert_same(route_reference(logits, scale, 8), scope["routing_function"](None, logits, 8, True), DTYPES[dtype])


def test_transformers_chain_is_transformers_router():
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

    config = Gemma4TextConfig(hidden_size=32, num_experts=16, top_k_experts=4, moe_intermediate_size=8)
    module = Gemma4TextRouter(config)
    torch.manual_seed(0)
    with torch.no_grad():
        module.proj.weight.normal_()
        module.per_expert_scale.uniform_(0.5, 1.5)
        hidden = torch.randn(64, 32)
        scaled = module.norm(hidden) * module.scale * module.scalar_root_size
        logits = module.proj(scaled)
        _, weights, ids = module(hidden)
        got = transformers_chain(logits, module.per_expert_scale, 4)
    assert torch.equal(got[0], weights)
    assert torch.equal(got[1], ids.int())
    # In fp32 the two chains are one function: renormalising cancels to within the roundings of either.
    ours = route_reference(logits, module.per_expert_scale.detach(), 4)
    assert torch.equal(ours[1], ids.int())
    assert torch.allclose(ours[0], weights, rtol=16 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.gpu
def test_bits_on_the_gpu():
    from g4lab.bench.router import prove

    results = prove()
    assert sum(result.n_tokens for _, result in results) >= 1_000_000
    assert not [result.summary() | {"T": t} for t, result in results if not result.bit_identical]


@pytest.mark.gpu
def test_cuda_graph_replay_sees_new_logits():
    logits, scale = draw("tied", 64, 128, "bfloat16")
    route(logits, scale, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = route(logits, scale, 8)
    logits.copy_(draw("tied", 64, 128, "bfloat16", seed=1)[0])
    graph.replay()
    torch.cuda.synchronize()
    assert_same(got, route_reference(logits, scale, 8), torch.bfloat16)


@pytest.mark.gpu
def test_logits_and_scale_on_two_devices():
    with pytest.raises(BadInput, match="the logits' device cuda"):
        route(torch.zeros(2, 8, device="cuda"), torch.ones(8), 2)
