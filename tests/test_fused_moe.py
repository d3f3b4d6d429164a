"""The fused expert layer against eager PyTorch; the order of its sums; what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab import env
from g4lab.errors import BadInput
from g4lab.kernels.fused_moe import MoEConfig, MoETile, fused_moe, fused_moe_reference, pick_config, place
from g4lab.quality.moe_budget import row_budget

DEVICE = "cuda" if env.has_gpu() else "cpu"
TILE = MoETile(16, 32, 32, 2, 4, 1)
SMALL = MoEConfig(TILE, TILE)


def layer(tokens, hidden=64, width=44, experts=8, top_k=2, dtype=torch.float32, seed=0, ids=None):
    """Arguments of fused_moe by name; weights scaled so that every stage has values near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    if ids is None:
        ids = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :top_k]
    return {
        "x": draw(tokens, hidden).to(DEVICE, dtype),
        "w_gate_up": (draw(experts, 2 * width, hidden) / hidden**0.5).to(DEVICE, dtype),
        "w_down": (draw(experts, hidden, width) / width**0.5).to(DEVICE, dtype),
        "topk_weights": torch.rand(ids.shape, generator=generator).to(DEVICE),
        "topk_ids": ids.to(DEVICE),
    }


def assert_within_budget(got, x):
    """Every row, by quality.moe_budget."""
    truth, low = (fused_moe_reference(**x, compute=c).double() for c in (torch.float64, x["x"].dtype))
    budget = row_budget(truth, low, x["x"].dtype, sum(x["w_down"].shape[1:]))
    error = (got.double() - truth).abs().amax(-1)
    assert got.shape == truth.shape
    assert (error <= budget).all(), (error / budget).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("tokens", "sizes"),
    [
        (1, {}),
        (5, {"experts": 3, "top_k": 1}),
        (37, {"hidden": 96, "width": 44, "experts": 16, "top_k": 4}),
        (4, {"hidden": 80, "width": 24, "experts": 256, "top_k": 8}),
    ],
)
def test_within_the_error_budget(tokens, sizes, dtype):
    x = layer(tokens, dtype=dtype, **sizes)
    assert_within_budget(fused_moe(**x, config=SMALL), x)


def test_an_expert_of_26b_a4b():
    """The checkpoint's own hidden size and expert width, which is no multiple of 128; four experts of its 128."""
    x = layer(6, hidden=2816, width=704, experts=4, dtype=torch.bfloat16)
    assert_within_budget(fused_moe(**x), x)


@pytest.mark.parametrize("expert", [0, 5, 7])
def test_all_tokens_on_one_expert(expert):
    x = layer(40, top_k=1, ids=torch.full((40, 1), expert))
    assert_within_budget(fused_moe(**x, config=SMALL), x)


def test_an_expert_named_twice_counts_twice():
    x = layer(9, ids=torch.full((9, 2), 3))
    assert_within_budget(fused_moe(**x, config=SMALL), x)
    once = x | {"topk_ids": x["topk_ids"][:, :1], "topk_weights": x["topk_weights"].sum(1, keepdim=True)}
    assert_within_budget(fused_moe(**once, config=SMALL), x)


@pytest.mark.parametrize("nobody", [-1, 8, 99])
def test_ids_that_no_expert_has_add_nothing(nobody):
    x = layer(9)
    x["topk_ids"][:, 1] = nobody
    alone = x | {"topk_ids": x["topk_ids"][:, :1], "topk_weights": x["topk_weights"][:, :1]}
    assert torch.equal(fused_moe(**x, config=SMALL), fused_moe(**alone, config=SMALL))
    x["topk_ids"][:] = nobody
    assert (fused_moe(**x, config=SMALL) == 0).all()


def test_no_tokens():
    assert fused_moe(**layer(0)).shape == (0, 64)


def test_strided_views_and_out():
    x = layer(12)
    expected = fused_moe(**x, config=SMALL)
    wide = torch.full((12, 80), 7.0, device=DEVICE)
    views = x | {"x": torch.cat([x["x"], x["x"]], dim=1)[:, :64], "topk_weights": x["topk_weights"].T.contiguous().T}
    views |= {"topk_ids": x["topk_ids"].int().T.contiguous().T, "w_down": torch.cat([x["w_down"]] * 2, 1)[:, :64]}
    assert fused_moe(**views, config=SMALL, out=wide[:, :64]).data_ptr() == wide.data_ptr()
    assert torch.equal(wide[:, :64], expected)
    assert (wide[:, 64:] == 7).all()


@pytest.mark.parametrize("tokens", [1, 13, 60])
def test_a_token_does_not_see_its_batch(tokens):
    """Alone and in a batch: the same bits on a GPU. NumPy's product, which the interpreter uses, adds in an order that
    depends on where in the block a row stands; there it stays within the order's error."""
    x = layer(tokens, seed=tokens)
    together = fused_moe(**x, config=SMALL)
    assert torch.equal(together, fused_moe(**x, config=SMALL))
    for one in {0, tokens // 2, tokens - 1}:
        alone = x | {name: x[name][one : one + 1] for name in ("x", "topk_weights", "topk_ids")}
        got, expected = fused_moe(**alone, config=SMALL), together[one : one + 1]
        if DEVICE == "cuda":
            assert torch.equal(got, expected)
        torch.testing.assert_close(got, expected, rtol=0, atol=float(108**0.5 * 2**-23 * expected.abs().max()))


def test_nan_and_infinity_stay_in_their_rows():
    x = layer(20)
    expected = fused_moe(**x, config=SMALL)
    x["x"][3, 5] = float("nan")
    x["x"][11, 0] = float("inf")
    got = fused_moe(**x, config=SMALL)
    clean = torch.ones(20, dtype=torch.bool, device=DEVICE)
    clean[3] = clean[11] = False
    assert torch.equal(got[clean], expected[clean])
    assert got[3].isnan().all()
    assert not got[11].isfinite().all()


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 400), top_k=st.integers(1, 8), experts=st.integers(1, 256),
    block_m=st.sampled_from([16, 64]), skew=st.integers(1, 300), seed=st.integers(0, 99),
)  # fmt: skip
def test_pairs_are_placed_once_in_blocks_of_their_expert(tokens, top_k, experts, block_m, skew, seed):
    """Any ids, out of range too: each expert's pairs in order, in as many blocks as they need and no more."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, min(experts, skew) + 1, (tokens, top_k), generator=generator).to(DEVICE)
    pairs, block_expert, block_rows = place(ids, experts, block_m)
    blocks = [
        (int(e), pairs[b * block_m : b * block_m + int(n)].tolist())
        for b, (e, n) in enumerate(zip(block_expert, block_rows, strict=True)) if e < experts
    ]  # fmt: skip
    flat = ids.flatten()
    for expert in range(experts):
        found = [placed for e, placed in blocks if e == expert]
        expected = torch.where(flat == expert)[0].tolist()
        assert [pair for placed in found for pair in placed] == expected
        assert all(len(placed) == block_m for placed in found[:-1])
    assert [e for e, _ in blocks] == sorted(e for e, _ in blocks)
    assert all(placed for _, placed in blocks)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ({"x": lambda t: t[0]}, {}, "x: got '(64,) torch.float32', expected [tokens, hidden]"),
        ({"x": lambda t: t.double()}, {}, "x: got '(5, 64) torch.float64'"),
        ({"x": lambda t: t[:, :32]}, {}, "w_down: got (8, 64, 44), expected shape [1 to 256 experts, 32, width]"),
        ({"w_down": lambda t: t.repeat(40, 1, 1)}, {}, "w_down: got (320, 64, 44)"),
        ({"w_gate_up": lambda t: t[:, :44]}, {}, "w_gate_up: got (8, 44, 64), expected shape (8, 88, 64)"),
        ({"w_gate_up": lambda t: t.half()}, {}, "w_gate_up: got torch.float16, expected x's dtype torch.float32"),
        ({"w_down": lambda t: t.mT.contiguous().mT}, {}, "w_down: got 'stride 64', expected stride 1"),
        ({"topk_ids": lambda t: t[:4]}, {}, "topk_ids: got (4, 2), expected shape (5, experts per token)"),
        ({"topk_ids": lambda t: t.float()}, {}, "topk_ids: got torch.float32, expected int32 or int64"),
        ({"topk_weights": lambda t: t[:, :1]}, {}, "topk_weights: got '(5, 1) torch.float32', expected shape (5, 2)"),
        ({}, {"out": torch.empty(5, 32, device=DEVICE)}, "out: got '(5, 32) torch.float32'"),
        ({}, {"activation": "silu"}, "activation: got 'silu', expected one of gelu_tanh"),
        ({}, {"config": MoEConfig(TILE, MoETile(32, 32, 32, 2, 4, 1))}, "config: got 'block_m 16 and 32'"),
    ],
)
def test_bad_input(change, options, expected):
    x = layer(5)
    with pytest.raises(BadInput) as error:
        fused_moe(**x | {name: make(x[name]) for name, make in change.items()}, **options)
    assert expected in str(error.value)


def test_few_pairs_per_expert_have_small_blocks():
    """26B-A4B: up to 256 tokens an expert has 16 pairs on average; one block of 16 rows reads its weights once."""
    assert pick_config(256, 8, 128).gate_up.block_m == 16
    assert pick_config(257, 8, 128).gate_up.block_m == 64
    assert pick_config(8192, 8, 128).down.block_m == 128


@pytest.mark.gpu
def test_cuda_graph_replays_with_new_routing():
    x = layer(64, hidden=512, width=192, experts=128, top_k=8, dtype=torch.bfloat16)
    fused_moe(**x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused_moe(**x)
    x["topk_ids"].copy_(layer(64, experts=128, top_k=8, seed=1)["topk_ids"])
    graph.replay()
    assert torch.equal(out, fused_moe(**x))
    assert_within_budget(out, x)
