"""The tuner of the expert layer: rules, model and choice on real compile facts, timings made up, files from timings."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from g4lab import env
from g4lab.errors import BadInput, Unavailable
from g4lab.kernels.moe_tiles import MoEConfig, MoETile
from g4lab.tuning import chips, moe_configs, moe_model, moe_off_key, moe_report, moe_space, moe_tune, sglang_moe
from g4lab.tuning.moe_keys import short, upstream
from g4lab.tuning.moe_shapes import MoEShape, of
from g4lab.tuning.moe_space import PRODUCTS, before_compiling, tunable
from g4lab.tuning.moe_tune import KEYS, Tuned, Verdict

SGLANG, OURS = tunable("sglang_fused_moe"), tunable("fused_moe")
HOPPER = chips.chip("sm_90")
# Few of the space: for few tokens, for many, and one that rules take out.
SMALL = [MoETile(16, 64, 64, 1, 4, 3), MoETile(16, 64, 64, 1, 4, 5), MoETile(64, 128, 64, 1, 4, 3)]
TILES = [*SMALL, MoETile(16, 64, 64, 1, 8, 3)]
SIZES = (1, 512, 8192)


def test_rules_on_the_tile_alone():
    why = before_compiling
    assert why(SGLANG, "sm_90", "down", MoETile(16, 64, 64, 1, 8, 3)) == "warps"
    assert why(SGLANG, "sm_90", "down", MoETile(128, 256, 64, 1, 4, 3)) == "registers"
    assert why(OURS, "sm_90", "gate_up", MoETile(128, 128, 64, 1, 4, 3)) == "registers", "of gate and of up"
    assert why(OURS, "sm_90", "down", MoETile(128, 128, 64, 1, 4, 3)) is None
    assert why(SGLANG, "sm_90", "down", MoETile(128, 256, 128, 1, 8, 3)) is None
    assert why(SGLANG, "sm_90", "down", MoETile(128, 256, 128, 1, 8, 4)) == "buffers", "3 x 96 KB in flight"


def test_the_space_is_affordable_and_has_what_upstream_chose_for_an_h200():
    tiles = moe_space.tiles()
    assert len(set(tiles)) == len(tiles)
    for what in (SGLANG, OURS):
        for product in PRODUCTS:
            left = {tile for tile in tiles if before_compiling(what, "sm_90", product, tile) is None}
            assert len(left) <= 60
    theirs = {getattr(config, product) for config in upstream().values() for product in PRODUCTS}
    assert {MoETile(**{**vars(tile), "group_m": 1}) for tile in theirs} <= left


def test_group_m_follows_the_blocks_of_an_expert():
    groups = [moe_space.grouped(SMALL[0], blocks).group_m for blocks in (0.2, 1, 1.9, 2, 5, 16, 1000)]
    assert groups == [1, 1, 1, 2, 4, 16, 16]


@given(
    tokens=st.sampled_from([1, 3, 64, 1024, 16384]), product=st.sampled_from(PRODUCTS),
    tile=st.sampled_from(moe_space.tiles()), what=st.sampled_from([SGLANG, OURS]), tp=st.sampled_from([1, 4]),
)  # fmt: skip
def test_bound_is_what_memory_and_matrix_unit_take(tokens, product, tile, what, tp):
    shape = of(tp=tp, sizes=[tokens])[0]
    least = HOPPER.us(moe_model.bound(what, HOPPER, shape, product, tile, "wgmma"))
    share = 2 / 3 if product == "gate_up" else 1 / 3
    weights = share * 3 * shape.touched * shape.hidden * shape.width * 2
    assert least >= 0.999 * weights / HOPPER.gbps / 1e3
    assert least >= 0.999 * share * shape.flops / (HOPPER.sms * HOPPER.flops["wgmma"] * HOPPER.ghz * 1e3)


@pytest.fixture(scope="module")
def compiled():
    """Three tiles of both products of SGLang's kernel: six compiles where nothing is cached."""
    return moe_tune.compile_tiles("sglang_fused_moe", "sm_90", of(sizes=SIZES), TILES)


@pytest.fixture(scope="module")
def tuned(compiled):
    return moe_tune.survey(compiled, of(sizes=SIZES), TILES)


def test_few_tokens_get_few_rows_and_many_get_many(tuned):
    few, _, many = tuned
    assert few.config.gate_up.block_m == few.config.down.block_m == 16
    assert few.verdicts["down"].removed[SMALL[2]] == "rows", "64 of which 63 are empty"
    assert "rows" not in many.verdicts["down"].removed.values()
    assert many.config.gate_up.block_m == many.config.down.block_m == 64
    assert many.config.gate_up.group_m == 8, "512 pairs of each expert"
    assert {each.basis for each in tuned} == {"compile facts and a model, not timed"}
    for each in tuned:
        for verdict in each.verdicts.values():
            assert verdict.removed[TILES[3]] == "warps"
            assert len(verdict.removed) + len(verdict.ranked) == len(TILES)


def test_no_estimate_beats_the_bound(compiled, tuned):
    for each in tuned:
        for product, verdict in each.verdicts.items():
            for candidate, us in verdict.ranked:
                arguments = SGLANG, HOPPER, each.shape, product, candidate.tile
                assert us >= HOPPER.us(moe_model.bound(*arguments, candidate.facts.mma)) * 0.999
                assert us == compiled.us(each.shape, product, candidate.tile)


def test_other_routing_changes_the_work(compiled):
    """Under zipf fewer experts are touched at 64 tokens, so the weights take less time."""
    skewed = of(sizes=[64], routing="zipf")[0]
    assert moe_model.load(skewed, 16).touched < 0.9 * moe_model.load(of(sizes=[64])[0], 16).touched
    assert compiled.us(skewed, "down", SMALL[1]) < compiled.us(of(sizes=[64])[0], "down", SMALL[1])


class Timer:
    """Made-up times: the product's, the tile's rank in the space, a factor for block_m."""

    def __init__(self, factor):
        self.factor, self.asked = factor, []

    def __call__(self, shape, product, tiles):
        self.asked.append((shape.tokens, product))
        times = {
            short(t): {"p50_us": 10 * self.factor[product, t.block_m] + t.num_stages + t.group_m / 100} for t in tiles
        }
        return {"times": times, "aa_low": 0.99, "aa_high": 1.01}


def test_one_block_m_is_chosen_by_the_sum_of_both_products(compiled, tuned, tmp_path):
    factor = {("gate_up", 16): 3, ("gate_up", 64): 2, ("down", 16): 1, ("down", 64): 3}
    timer, state = Timer(factor), tmp_path / "t.jsonl"
    timed = moe_tune.time_survivors(compiled, tuned, timer, state)
    few, medium, many = timed
    assert sorted(medium.block_ms) == [16, 64]
    assert medium.config == few.config == MoEConfig(SMALL[0], SMALL[0]), "30 + 10 against 20 + 30; fewer stages"
    assert many.config == MoEConfig(SMALL[2], SMALL[2]), "16 rows were taken out"
    assert timed[0].basis == f"timed on {env.machine_name()}"
    assert len(timer.asked) == 6
    again = moe_tune.time_survivors(compiled, tuned, None, state)
    assert again == timed, "from the file"
    table = json.loads(moe_tune.table(compiled, timed))
    assert [row["basis"] for row in table["shapes"]] == [timed[0].basis] * 3


def test_timings_of_another_machine_are_made_again(compiled, tuned, tmp_path, monkeypatch):
    timer, state = Timer({(p, m): 1 for p in PRODUCTS for m in (16, 64)}), tmp_path / "t.jsonl"
    moe_tune.time_survivors(compiled, tuned[:1], timer, state)
    monkeypatch.setattr(env, "machine_name", lambda: "another")
    moe_tune.time_survivors(compiled, tuned[:1], timer, state)
    assert len(timer.asked) == 4


def found_by_sglang(timed, folder, monkeypatch):
    """SGLang's own lookup, of which only the GPU's name is made up, takes what was timed."""
    module = pytest.importorskip("sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config")
    monkeypatch.setattr(module, "get_device_name", lambda: "NVIDIA H200")
    for each in timed:
        expected = tuple(moe_configs.entry(getattr(each.config, product)) for product in PRODUCTS)
        assert sglang_moe.choice(each.shape.tokens, 2816, 704, 128, 8, folder) == expected


def test_files_come_from_timings_alone(compiled, tuned, tmp_path, monkeypatch):
    gpu = {"gpus": [{"name": "NVIDIA H200", "sm": "sm_90"}]}
    monkeypatch.setattr(env, "machine", lambda: gpu)
    with pytest.raises(BadInput, match="not timed"):
        moe_tune.write_files(compiled, tuned, tmp_path)
    timer = Timer({(p, m): 1 for p in PRODUCTS for m in (16, 64)})
    timed = moe_tune.time_survivors(compiled, tuned, timer, tmp_path / "t.jsonl")
    with pytest.raises(BadInput, match="not timed"):
        moe_tune.write_files(compiled, [*timed[:2], tuned[2]], tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    _, down = moe_tune.write_files(compiled, timed, tmp_path)
    assert moe_configs.load(tmp_path, 128, 704, "NVIDIA H200") == {each.shape.tokens: each.config for each in timed}
    assert down.name == "E=128,N=704,device_name=NVIDIA_H200_down.json"
    found_by_sglang(timed, tmp_path, monkeypatch)
    monkeypatch.setattr(env, "machine_name", lambda: "another")
    with pytest.raises(BadInput, match="another"):
        moe_tune.write_files(compiled, timed, tmp_path)


def test_a_shape_without_tiles_has_no_config():
    shape = MoEShape(1, 64, 64, 8, 2)
    empty = Tuned(shape, {product: Verdict(product, {SMALL[0]: "compile"}, []) for product in PRODUCTS})
    assert empty.config is None
    assert empty.block_ms == []


def test_loss_between_keys_is_the_nearest_configs_time_over_the_best():
    one, two = MoEConfig(SMALL[0], SMALL[0]), MoEConfig(SMALL[2], SMALL[2])
    us = {(16, 1): 30.0, (24, 1): 50.0, (24, 2): 40.0, (40, 2): None}
    frame = moe_off_key.losses(
        {16: one, 32: two}, [16, 24, 40], lambda t, config: us[t, 1 if config is one else 2],
        {16: one, 24: two, 40: two}.get, "made up",
    )  # fmt: skip
    assert frame.key.tolist() == [16, 16, 32], "of two as near the first in the file"
    assert frame.loss_pct[:2].tolist() == [0, 25]
    assert frame.loss_pct.isna().tolist() == [False, False, True]
    assert set(frame.basis) == {"made up"}


def test_report(compiled, tuned):
    between = moe_tune.survey(compiled, of(sizes=[6, 3000]), TILES)
    losses = moe_report.off_key(compiled, tuned, between)
    assert losses.key.tolist() == [1, 512]
    assert (losses.loss_pct >= 0).all()
    assert set(losses.basis) == {"model estimates, not timed"}
    pruning = moe_report.pruning(tuned)
    assert (pruning.warps == 1).all()
    assert len(moe_report.ranking(tuned)) == 3
    words = "\n".join(moe_report.words(tuned))
    assert re.search(r"^warps \(6 removed\)", words, re.MULTILINE)


def test_command_says_what_it_cannot_do():
    from g4lab.cli import app

    for arguments, why in (
        (["--tp", "1,x"], "tp: got '1,x'"),
        (["--tp", "3"], "divisor"),
        (["--model", "31b"], "experts"),
        (["--routing", "recorded"], "no expert counts"),
        (["--kernel", "router"], "sglang_fused_moe"),
    ):
        found = CliRunner().invoke(app, ["tune", "moe", "--dry-run", *arguments])
        assert found.exit_code != 0
        assert why in str(found.exception) + found.output, arguments


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_timed_call_is_sglangs_product(product):
    """SGLang's launcher in the interpreter, in fp16; 4 eps: products in fp32, one rounding, sums of 64 terms."""
    pytest.importorskip("sglang")
    from g4lab.bench import moe_cases, moe_tile_timing

    shape = MoEShape(5, 64, 48, 4, 2, dtype="float16")
    device = "cuda" if env.has_gpu() else "cpu"
    found = moe_tile_timing.sglang(shape, product, MoETile(16, 32, 32, 1, 4, 2), device)()
    x = moe_cases.inputs(shape, device)
    w_gate_up, w_down = (each.double() for each in x.layers[0])
    ids = x.topk_ids.long()
    if product == "gate_up":
        expected = torch.einsum("th,tkih->tki", x.x.double(), w_gate_up[ids]).reshape(10, 96)
    else:
        rows = torch.randn(10, 48, generator=torch.Generator(device).manual_seed(1), dtype=torch.float16, device=device)
        y = torch.einsum("tki,tkhi->tkh", rows.double().view(5, 2, 48), w_down[ids])
        expected = y * x.topk_weights[..., None].double()
    torch.testing.assert_close(found.double(), expected, rtol=4 * 2**-11, atol=2**-11)


def test_nothing_is_timed_without_a_gpu():
    from g4lab.bench import moe_tile_timing

    if not env.has_gpu():
        with pytest.raises(Unavailable, match="no kernel time here"):
            moe_tile_timing.timer("sglang_fused_moe")


def test_keys_reach_16384():
    assert KEYS[0] == 1
    assert KEYS[-1] == 16384
