"""The extend patches around SGLang's own extend_attention_fwd: the same output, the reasons to decline, the tables."""

import pytest
import torch

from g4lab.kernels.extend_attention import extend_attention_reference
from g4lab.kernels.extend_tiles import ExtendTile, pick_tile
from g4lab.patches import choices, counting, extend_attention, extend_call, extend_tiles
from g4lab.patches.extend_call import ExtendCall

AROUND = {"extend_tiles": extend_tiles._with_our_tile, "extend_attention": extend_attention._extend}


@pytest.fixture(scope="module")
def sglangs():
    """SGLang's extend_attention_fwd; on a CPU its kernel is interpreted."""
    module = pytest.importorskip("sglang.kernels.ops.attention.extend_attention")
    return module.extend_attention_fwd


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(counting, "_counts", type(counting._counts)())
    monkeypatch.setattr(counting, "_notes", {})


def _call(extend, prefix, *, heads=(4, 2), head_dim=32, mask=None, offsets=None, **options) -> ExtendCall:
    """Ragged sequences whose slots lie anywhere in the pool, as SGLang's Triton backend hands them over.

    mask: [new, new] -> bool, of a sequence's new tokens among themselves; its columns for older keys are False, which
    nothing may read.
    """
    generator = torch.Generator().manual_seed(3)

    def randn(rows, n):
        return torch.randn(rows, n, head_dim, generator=generator)

    total, cached = sum(extend), sum(prefix)
    q, k, v = (randn(total, n) for n in (heads[0], heads[1], heads[1]))
    pools = [randn(cached + 16, heads[1]) for _ in range(2)]
    slots = torch.randperm(cached + 16, generator=generator)[:cached]
    custom_mask = mask_indptr = None
    if mask is not None:
        before = [old + skipped for old, skipped in zip(prefix, offsets or [0] * len(prefix), strict=True)]
        rows = [
            torch.cat([torch.zeros(new, old, dtype=torch.bool), mask(new)], dim=1)
            for new, old in zip(extend, before, strict=True)
        ]
        custom_mask = torch.cat([row.flatten() for row in rows])
        mask_indptr = torch.tensor([0, *(row.numel() for row in rows)]).cumsum(0)
    return ExtendCall(
        q, k, v, torch.full_like(q, 7.0), *pools, torch.tensor([0, *extend]).cumsum(0),
        torch.tensor([0, *prefix]).cumsum(0).int(), slots, custom_mask, True, mask_indptr, max(extend), 1.0, 1.0,
        window_kv_offsets=torch.tensor(offsets) if offsets else None, **options,
    )  # fmt: skip


def _reference(call, compute):
    return extend_attention_reference(
        call.q_extend, call.k_extend, call.v_extend, call.k_buffer, call.v_buffer, call.qo_indptr, call.kv_indptr,
        call.kv_indices, sm_scale=call.sm_scale or call.head_dim**-0.5, window=call.window, logit_cap=call.logit_cap,
        custom_mask=call.custom_mask, mask_indptr=call.mask_indptr, window_kv_offsets=call.window_kv_offsets,
        compute=compute,
    )  # fmt: skip


def _run(around, sglangs, call):
    """What a patch around SGLang's function writes, called as the backend does: some by place, some by name."""
    out = torch.full_like(call.o_extend, 7.0)
    arguments = call._replace(o_extend=out)
    result = around(sglangs, *arguments[:16], **dict(zip(call._fields[16:], arguments[16:], strict=True)))
    assert result is None
    return out


def _tree(new):
    """Parents before their children, and each sees itself."""
    return torch.rand(new, new, generator=torch.Generator().manual_seed(new)).gt(0.5).tril() | torch.eye(new).bool()


CASES = {
    "ragged": lambda: _call([5, 1, 0, 70], [3, 0, 4, 40]),
    "window": lambda: _call([5, 1, 70], [13, 0, 13], sliding_window_size=13, sm_scale=0.3),
    "cap": lambda: _call([5, 9], [3, 30], head_dim=64, logit_cap=5.0, sm_scale=1.0),
    "tree": lambda: _call([4, 4], [30, 9], mask=_tree),
    "tree in a window": lambda: _call([4, 4], [11, 9], mask=_tree, offsets=[20, 3], sliding_window_size=11),
    "verify of eight, head dim 144": lambda: _call([4] * 8, [9] * 8, heads=(2, 1), head_dim=144, mask=_tree),
    "prefill, head dim 256": lambda: _call([40], [9], heads=(2, 1), head_dim=256, sliding_window_size=13),
}


@pytest.mark.parametrize("case", CASES)
def test_both_patches_write_what_sglang_writes(sglangs, case):
    call = CASES[case]()
    theirs = _run(lambda original, *args, **kwargs: original(*args, **kwargs), sglangs, call)
    exact, eager = _reference(call, torch.float64), _reference(call, torch.float32)
    budget = 2 * (eager - exact).abs().max() + exact.abs().max() * 2**-21  # two exps, a division: a few ulps
    assert (theirs - exact).abs().max() <= budget
    for around in AROUND.values():
        assert (_run(around, sglangs, call) - exact).abs().max() <= budget
    tile = pick_tile(arch="sm_90", table="seed", **call.launch())
    assert counting._counts == {"extend_tiles": 1, "extend_attention": 1}
    assert counting._notes == {"extend_tiles": {"tiles": {f"head_dim {call.head_dim}: {tile}": 1}}}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_both_patches_write_what_sglang_writes_on_a_gpu(sglangs, case):
    call = ExtendCall(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in CASES[case]()))
    call = ExtendCall(*(x.bfloat16() if getattr(x, "dtype", None) == torch.float32 else x for x in call))
    exact, eager = _reference(call, torch.float64), _reference(call, torch.bfloat16).double()
    budget = 2 * (eager - exact).abs().max() + exact.abs().max() * 2**-8  # eager rounds after every operator
    for around in AROUND.values():
        assert (_run(around, sglangs, call) - exact).abs().max() <= budget


def test_verify_and_prefill_get_the_seeds_two_tiles():
    picked = {name: extend_tiles.pick(CASES[name]())[0] for name in list(CASES)[-2:]}
    assert list(picked.values()) == [ExtendTile(16, 64, 4, 2), ExtendTile(32, 64, 4, 2)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_causal": False}, "attention that is not causal"),
        ({"sinks": torch.zeros(4)}, "attention sinks"),
        ({"xai_temperature_len": 8}, "a temperature by position"),
        ({"score_mod": print}, "a score_mod"),
        ({"lse_extend": torch.zeros(5, 4)}, "log-sum-exps for the caller"),
        ({"skip_prefix": True}, "a part of the keys only"),
        ({"skip_extend": True}, "a part of the keys only"),
        ({"identity_kv_indices": True}, "a prefix without slots"),
        ({"v_scale": 0.5}, "a scaled KV cache"),
        ({"k_buffer": torch.zeros(9, 2, 32, dtype=torch.float16)}, "dtypes torch.float16, torch.float32"),
        ({"v_extend": torch.zeros(5, 2, 16)}, "head dims 16, 32"),
        ({"v_buffer": torch.zeros(9, 2, 64)[..., ::2]}, "a layout that is not [tokens, heads, head_dim]"),
    ],
)
def test_what_ours_does_not_take_goes_to_sglang_with_the_reason(change, reason):
    call, seen = _call([5], [3])._replace(**change), []
    extend_attention._extend(lambda *args, **kwargs: seen.append((args, kwargs)), *call)
    assert seen == [(tuple(call), {})]
    assert counting._notes == {"extend_attention": {"declined": {reason: 1}}}
    assert counting._counts == {}


def test_a_call_keeps_sglangs_tile_where_another_is_not_known_to_be_right():
    mask = _call([40], [3], head_dim=256, mask=_tree)
    assert extend_tiles.pick(mask) == (None, "a custom mask over more tokens than a tile")
    assert extend_tiles.pick(mask._replace(custom_mask=None))[0] == ExtendTile(32, 64, 4, 2)
    tile, why = extend_tiles.pick(_call([5], [3], head_dim=576))
    assert tile is None
    assert "a head dim up to 512" in why
    latent = _call([5], [3])._replace(v_extend=torch.zeros(5, 2, 16))
    assert extend_tiles.pick(latent) == (None, "values with another head dim than keys")


def test_sglang_cuts_a_mask_that_looks_ahead_at_the_query_tile_and_ours_does_not(sglangs):
    """An image's tokens see one another both ways; SGLang 0.5.21 loses those beyond the query's own tile of 64."""
    call = _call([100], [7], mask=lambda new: torch.ones(new, new, dtype=torch.bool))
    exact = _reference(call, torch.float64)
    theirs = (_run(lambda original, *args, **kwargs: original(*args, **kwargs), sglangs, call) - exact).abs()
    ours = (_run(AROUND["extend_attention"], sglangs, call) - exact).abs()
    assert theirs[:64].amax((1, 2)).min() > 0.01
    assert max(theirs[64:].max(), ours.max()) < 1e-5


def test_a_table_without_tiles_of_its_own_is_declined(monkeypatch):
    for name, arch, why in (
        ("seed", "sm_90", None),
        ("legacy", "sm_90", None),
        ("sglang", "sm_80", None),
        ("seed", "sm_80", "the table seed has SGLang's own tiles for sm_80"),
        ("legacy", "sm_100", "the table legacy has SGLang's own tiles for sm_100"),
        ("seed", "sm_75", "the table seed has no tiles for sm_75"),
    ):
        assert extend_tiles.no_tiles(name, arch) == why
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("G4LAB_EXTEND_TILES", "g4lab")  # a table for another kernel
    choices.forget()
    try:
        why = extend_tiles.PATCH.declines("cpu")
        monkeypatch.setenv("G4LAB_EXTEND_TILES", "legacy")
        choices.forget()
        assert extend_tiles.PATCH.declines("cpu") is None
        assert extend_tiles.pick(_call([5], [3], head_dim=256))[0] == ExtendTile(128, 64, 8, 1)
    finally:
        choices.forget()
    assert why == "G4LAB_EXTEND_TILES is 'g4lab', expected seed or legacy or sglang"
    sm_80 = {"gpus": [{"sm": "sm_80"}]}
    monkeypatch.setattr(extend_tiles.env, "machine", lambda: sm_80)
    monkeypatch.delenv("G4LAB_EXTEND_TILES")
    assert extend_tiles.PATCH.declines("cuda") == "the table seed has SGLang's own tiles for sm_80"


def test_another_signature_is_declined_not_met_in_the_first_batch(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert extend_attention.PATCH.declines("cpu") is None

    def changed(q_extend, k_extend, new_argument):
        pass

    monkeypatch.setattr(extend_call.pkgutil, "resolve_name", lambda name: changed)
    for patch in (extend_attention.PATCH, extend_tiles.PATCH):
        assert patch.declines("cpu").startswith("this SGLang's extend_attention_fwd differs in [")
        assert "'new_argument'" in patch.declines("cpu")
        assert "'q_extend'" not in patch.declines("cpu")


@pytest.mark.parametrize(("left_out", "taken"), [(0, True), (2, True), (15, True), (16, False)])
def test_a_signature_may_end_before_its_optional_arguments(monkeypatch, left_out, taken):
    names = extend_call.ExtendCall._fields[: len(extend_call.ExtendCall._fields) - left_out]  # 0.5.17's lacks two
    there = {}
    exec(f"def forward({', '.join(names)}): pass", there)
    monkeypatch.setattr(extend_call.pkgutil, "resolve_name", lambda name: there["forward"])
    why = extend_call.other_arguments()
    assert (why is None) == taken, why
    if not taken:
        assert "v_scale" in why
