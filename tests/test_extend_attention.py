"""Extend attention: every key counted once, whatever the lengths, window, tile and split; and what it refuses.

The grid of head dims, cases and dtypes against the fp64 reference is in test_extend_grid.py.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab import env
from g4lab.errors import BadInput
from g4lab.kernels.extend_attention import (
    ExtendTile,
    extend_attention,
    extend_attention_reference,
    pick_splits,
    pick_tile,
)
from g4lab.kernels.extend_reference import visible_keys
from g4lab.kernels.extend_tiles import TABLES, pick_rule

DEVICE = "cuda" if env.has_gpu() else "cpu"
TILE = ExtendTile(16, 16, 4, 1)


def inputs(extends, prefixes, *, heads=(2, 1), head_dim=16, dtype=torch.float32, seed=0):
    """Arguments of extend_attention by name; slots are shuffled, and what is in none of them is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    (num_q_heads, num_kv_heads), tokens, cached = heads, sum(extends), sum(prefixes)
    slots = torch.randperm(2 * cached + 3, generator=generator)[:cached].to(DEVICE)
    buffers = []
    for _ in range(2):
        buffer = torch.full((2 * cached + 3, num_kv_heads, head_dim), math.nan, dtype=dtype, device=DEVICE)
        buffer[slots] = draw(cached, num_kv_heads, head_dim)
        buffers.append(buffer)
    return {
        "q": draw(tokens, num_q_heads, head_dim),
        "k": draw(tokens, num_kv_heads, head_dim),
        "v": draw(tokens, num_kv_heads, head_dim),
        "k_buffer": buffers[0],
        "v_buffer": buffers[1],
        "qo_indptr": torch.tensor([0, *extends], device=DEVICE).cumsum(0),
        "kv_indptr": torch.tensor([0, *prefixes], device=DEVICE).cumsum(0).int(),
        "kv_indices": slots,
    }


def run(x, **options):
    longest = int(x["qo_indptr"].diff().max())
    return extend_attention(**x, **({"max_len_extend": longest, "tile": TILE} | options))


lengths = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 50)), min_size=1, max_size=3)


@settings(max_examples=25)
@given(
    lengths=lengths,
    window=st.none() | st.integers(1, 60),
    tile=st.sampled_from([TILE, ExtendTile(16, 32, 4, 2), ExtendTile(32, 16, 4, 3)]),
    group=st.sampled_from([1, 2, 3]),
    splits=st.sampled_from([1, 1, 2, 4]),
)
def test_every_visible_key_counts_once(lengths, window, tile, group, splits):
    """With q = 0 all visible keys weigh the same: means of position and position squared say which were counted."""
    extends, prefixes = zip(*lengths, strict=True)
    x = inputs(extends, prefixes, heads=(group, 1))
    x["q"].zero_()
    expected = []
    for b, (extend, prefix) in enumerate(lengths):
        key = torch.arange(prefix + extend, dtype=torch.float32, device=DEVICE)
        values = torch.stack([key, key**2], dim=1)
        mine = slice(int(x["kv_indptr"][b]), int(x["kv_indptr"][b + 1]))
        x["v_buffer"][x["kv_indices"][mine], 0, :2] = values[:prefix]
        x["v"][int(x["qo_indptr"][b]) : int(x["qo_indptr"][b + 1]), 0, :2] = values[prefix:]
        seen = visible_keys(extend, prefix, window, DEVICE).double()
        expected.append(seen @ values.double() / seen.sum(1, keepdim=True))
    if sum(extends) == 0:
        return
    got = run(x, window=window, tile=tile, splits=splits)[:, :, :2]
    # Weights are exp2(0) = 1 and sums of integers exact in fp32 but for the squares' (74 * 74**2 < 2**24: exact too),
    # so one division, one product and what the split weights and their sum round: 8 roundings at most.
    torch.testing.assert_close(got.double(), torch.cat(expected)[:, None].expand_as(got), rtol=8 * 2**-23, atol=0)


@settings(max_examples=6)
@given(lengths=lengths, window=st.none() | st.integers(1, 60), seed=st.integers(0, 9))
def test_a_sequence_does_not_see_its_batch(lengths, window, seed):
    """The same bits alone and in any batch, for one tile and no split."""
    extends, prefixes = zip(*lengths, strict=True)
    x = inputs(extends, prefixes, seed=seed)
    if sum(extends) == 0:
        return
    together = run(x, window=window)
    for b in range(len(lengths)):
        new, old = (slice(int(x[name][b]), int(x[name][b + 1])) for name in ("qo_indptr", "kv_indptr"))
        alone = {name: x[name][new] for name in ("q", "k", "v")} | {name: x[name] for name in ("k_buffer", "v_buffer")}
        alone["qo_indptr"] = torch.tensor([0, extends[b]], device=DEVICE)
        alone["kv_indptr"] = torch.tensor([0, prefixes[b]], device=DEVICE)
        alone["kv_indices"] = x["kv_indices"][old]
        assert torch.equal(run(alone, window=window), together[new])


def test_int32_and_int64_indices_are_the_same():
    x = inputs([3, 20], [17, 40])
    other = x | {name: x[name].to(torch.int32) for name in ("qo_indptr", "kv_indices")}
    other["kv_indptr"] = x["kv_indptr"].long()
    assert torch.equal(run(x), run(other))


def test_strided_views_and_out():
    x = inputs([3, 20], [17, 40], heads=(4, 2))
    expected = run(x)
    packed = torch.cat([x["q"].flatten(1), x["k"].flatten(1), x["v"].flatten(1)], dim=1)
    q, k, v = (part.unflatten(1, (-1, 16)) for part in packed.split([64, 32, 32], dim=1))
    pool = torch.stack([x["k_buffer"], x["v_buffer"]], dim=2)
    wide = torch.full((23, 4, 24), 7.0, device=DEVICE)
    views = x | {"q": q, "k": k, "v": v, "k_buffer": pool[:, :, 0], "v_buffer": pool[:, :, 1]}
    assert run(views, out=wide[:, :, :16]).data_ptr() == wide.data_ptr()
    assert torch.equal(wide[:, :, :16], expected)
    assert (wide[:, :, 16:] == 7.0).all()


def test_no_tokens_launch_nothing():
    x = inputs([0, 0], [5, 0])
    assert extend_attention(**x, max_len_extend=0).shape == (0, 2, 16)


def test_a_pool_without_slots():
    x = inputs([5], [0])
    empty = torch.empty(0, 1, 16, device=DEVICE)
    assert torch.equal(run(x | {"k_buffer": empty, "v_buffer": empty}), run(x))


def test_infinities_and_nan_stay_in_their_rows():
    x = inputs([40], [20], heads=(2, 1))
    expected = run(x)
    x["q"][3, 0] = math.nan
    x["q"][30, 1] = math.inf
    got = run(x)
    assert got[3, 0].isnan().all()
    assert got[30, 1].isnan().all()  # inf - inf, as in eager's softmax
    clean = torch.ones(40, 2, dtype=torch.bool, device=DEVICE)
    clean[3, 0] = clean[30, 1] = False
    assert torch.equal(got[clean], expected[clean])


def test_a_large_score_takes_all():
    x = inputs([20], [30])
    x["k"][4] = x["q"][10, :1] * 1e4
    assert torch.equal(run(x)[10, 0], x["v"][4, 0])


def test_a_mask_lets_a_query_look_ahead():
    """The mask takes causality's place: what lies after the query counts where the mask says so."""
    x = inputs([20], [0])
    mask = torch.zeros(20, 20, dtype=torch.bool, device=DEVICE)
    mask[:, 19] = True
    got = run(x, custom_mask=mask.flatten(), mask_indptr=torch.zeros(2, dtype=torch.int64, device=DEVICE))
    assert torch.equal(got, x["v"][19:].expand_as(got))


@pytest.mark.parametrize("splits", [1, 3])
def test_rows_that_see_nothing_are_zero(splits):
    x = inputs([20], [0])
    mask = torch.ones(20, 20, dtype=torch.uint8, device=DEVICE).tril()
    mask[7] = 0
    where = {"custom_mask": mask.flatten(), "mask_indptr": torch.zeros(2, dtype=torch.int64, device=DEVICE)}
    got = run(x, splits=splits, **where)
    assert (got[7] == 0).all()
    assert torch.equal(got[7], extend_attention_reference(**x, **where)[7])


def replaced(**changes):
    def change(x):
        return x | {name: make(x[name]) for name, make in changes.items()}

    return change


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (replaced(kv_indices=lambda t: t.index_fill(0, torch.tensor([6], device=DEVICE), 999)), {},
         "kv_indices: got 999, expected a slot from 0 to 116 (sequence 0, position 6)"),
        (replaced(kv_indices=lambda t: t.index_fill(0, torch.tensor([0], device=DEVICE), -1)), {},
         "(sequence 0, position 0)"),
        (replaced(), {"max_len_extend": 19}, "max_len_extend: got 19, expected at least 20, the new tokens of seque"),
        (replaced(qo_indptr=lambda t: t + 1), {}, "qo_indptr: got 24, expected at most 23, the length of q"),
        (replaced(qo_indptr=lambda t: t.flip(0)), {}, "qo_indptr: got [23, 3], expected values that do not fall"),
        (replaced(kv_indices=lambda t: t[:-1]), {}, "kv_indptr: got 57, expected at most 56"),
        (replaced(kv_indices=lambda t: t.float()), {}, "kv_indices: got '(57,) torch.float32', expected a contiguous"),
        (replaced(kv_indptr=lambda t: t[:2]), {}, "kv_indptr: got 2, expected a value for each of qo_indptr's 3"),
        (replaced(q=lambda t: t.half()), {}, "k: got torch.float32, expected q's dtype torch.float16"),
        (replaced(q=lambda t: t.double()), {}, "q: got torch.float64, expected bfloat16, float16 or float32"),
        (replaced(q=lambda t: t[:, :, :15]), {}, "head_dim a multiple of 16 from 16 to 512"),
        (replaced(q=lambda t: t[:, :1].expand(-1, 5, -1), k=lambda t: t.expand(-1, 2, -1)), {}, "a divisor of 5"),
        (replaced(v=lambda t: t[:-1]), {}, "v: got (22, 1, 16), expected shape (23, 1, 16)"),
        (replaced(k_buffer=lambda t: t[:, :, :8]), {}, "k_buffer: got (117, 1, 8), expected shape [slots, 1, 16]"),
        (replaced(k=lambda t: t.repeat(1, 1, 2)[..., ::2]), {}, "k: got 'stride 2', expected stride 1"),
        (replaced(), {"window": 0}, "window: got 0, expected None for no window, or at least 1"),
        (replaced(), {"sm_scale": 0.0}, "sm_scale: got 0.0, expected above 0"),
        (replaced(), {"logit_cap": -1.0}, "logit_cap: got -1.0"),
        (replaced(), {"splits": 0}, "splits: got 0, expected at least 1"),
        (replaced(), {"out": torch.empty(23, 1, 16, device=DEVICE)}, "out: got (23, 1, 16), expected q's shape"),
        (replaced(), {"custom_mask": torch.ones(1, device=DEVICE)}, "mask_indptr: got None"),
        (replaced(), {"custom_mask": torch.ones(9, device=DEVICE), "mask_indptr": torch.zeros(3, device=DEVICE)},
         "custom_mask: got torch.float32"),
    ],
)  # fmt: skip
def test_bad_input(change, options, expected):
    x = change(inputs([3, 20], [17, 40]))
    with pytest.raises(BadInput) as error:
        extend_attention(**x, **({"max_len_extend": 20, "debug": True} | options))
    assert expected in str(error.value)


def test_a_max_len_extend_too_small_cuts_nothing_short():
    """Without the check (as on a GPU by default) it only mistakes the tile: the grid does not depend on it."""
    x = inputs([3, 40], [17, 40])
    assert torch.equal(run(x, max_len_extend=1, debug=False), run(x))


def test_debug_can_be_asked_for(monkeypatch):
    from g4lab.kernels.extend_checks import debugging

    meta = torch.empty(1, device="meta")
    assert not debugging(meta)
    monkeypatch.setenv("G4LAB_DEBUG", "1")
    assert debugging(meta)


LAUNCH = {"arch": "sm_90", "head_dim": 256, "window": None, "batch": 32, "max_len_extend": 4, "max_prefix": 1000}


def test_published_regimes():
    """The two regimes of pyc96/sglang#4 and its gate; other head dims and architectures keep their tile."""
    seed = LAUNCH | {"table": "seed"}
    assert pick_tile(**seed) == ExtendTile(16, 64, 4, 2)
    assert pick_tile(**seed | {"batch": 7}) == pick_tile(**seed | {"max_len_extend": 17}) == ExtendTile(32, 64, 4, 2)
    assert pick_tile(**seed | {"head_dim": 128}) == ExtendTile(128, 64, 8, 1)
    assert pick_tile(**seed | {"head_dim": 512}) == ExtendTile(32, 64, 8, 1)
    assert pick_tile(**seed | {"arch": "sm_100"}) == ExtendTile(64, 64, 8, 1)


def test_sglangs_table_is_that_of_the_installed_version(monkeypatch):
    from sglang.kernels.ops.attention import extend_attention as theirs

    monkeypatch.setattr(theirs, "_is_cuda", True)
    for arch, capability in {
        "sm_80": (8, 0),
        "sm_89": (8, 9),
        "sm_90": (9, 0),
        "sm_100": (10, 0),
        "sm_120": (12, 0),
    }.items():
        monkeypatch.setattr(theirs, "CUDA_CAPABILITY", capability, raising=False)
        for head_dim in (64, 128, 192, 256, 288, 512):
            *_, m, n, warps = theirs._get_block_sizes_for_extend_attention(head_dim, head_dim)
            found = pick_tile(**LAUNCH | {"arch": arch, "head_dim": head_dim, "table": "sglang"})
            assert found == ExtendTile(m, n, warps, 1)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("table", TABLES)
def test_every_launch_has_a_rule_with_evidence(arch, table):
    for head_dim in (64, 128, 192, 256, 288, 512):
        for batch, length, group in ((1, 8192, 2), (32, 4, 2), (64, 1, 8), (4, 1000, 8)):
            sizes = {"head_dim": head_dim, "batch": batch, "max_len_extend": length, "group": group}
            rule = pick_rule(**LAUNCH | sizes | {"arch": arch, "table": table})
            assert rule.evidence
            if table == "g4lab" and rule.max_rows:
                assert rule.tile.block_m == rule.max_rows  # one tile has all rows of a sequence's KV head


def test_our_tiles_follow_the_regime():
    """Verify of four drafts and two heads: 16 rows, half of them used; long prefill: 128 rows, unless they are few."""
    ours = LAUNCH | {"group": 2}
    assert pick_tile(**ours).block_m == 16
    assert pick_tile(**ours | {"batch": 1, "max_len_extend": 8192}).block_m == 128
    assert pick_tile(**ours | {"batch": 1, "max_len_extend": 1000}).block_m == 64
    assert pick_tile(**ours | {"head_dim": 512, "group": 8}).block_m == 32


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"table": "fastest"}, "table: got 'fastest', expected one of g4lab"),
        ({"arch": "sm_70"}, "arch, head_dim: got ('sm_70', 256)"),
        ({"head_dim": 576}, "arch, head_dim: got ('sm_90', 576)"),
    ],
)
def test_no_rule(change, expected):
    with pytest.raises(BadInput) as error:
        pick_tile(**LAUNCH | change)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("programs", "keys", "expected"),
    [
        (300, 8192, 1),  # there are more programs than the processors hold
        (8, 8192, 32),  # 33 would fit, 32 is the most
        (88, 8192, 3),
        (8, 200, 3),  # no part below four blocks of 16 keys
        (8, 10, 1),
        (0, 8192, 32),
    ],
)
def test_splits_fill_the_processors(programs, keys, expected):
    assert pick_splits(TILE, programs, keys, 132) == expected


@pytest.mark.gpu
def test_cuda_graph_replays_with_new_lengths():
    x = inputs([4] * 8, [1000] * 8, heads=(16, 8), head_dim=256, dtype=torch.bfloat16)
    options = {"max_len_extend": 4, "window": 512, "tile": None}
    for splits in (1, 4):
        graph = torch.cuda.CUDAGraph()
        run(x, splits=splits, **options)
        with torch.cuda.graph(graph):
            out = run(x, splits=splits, **options)
        lengths = torch.tensor([3, 900, 17, 0, 64, 1000, 999, 1], device=DEVICE)
        x["kv_indptr"][1:] = lengths.cumsum(0)
        graph.replay()
        assert torch.equal(out, run(x, splits=splits, **options))
