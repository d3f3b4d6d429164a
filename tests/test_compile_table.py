"""The compile-ahead table: every kernel of the lab and its peers, for Hopper and Blackwell, and none of ours spills."""

import pytest
from typer.testing import CliRunner

from g4lab.errors import BadInput
from g4lab.kernels.extend_tiles import pick_tile
from g4lab.tuning import catalog, compile_facts, compile_many
from g4lab.tuning.table import ARCHES, CHOICES, compile_table


@pytest.fixture(scope="module")
def table():
    return compile_table(progress=lambda done, total: print(f"compiled {done}/{total}", end="\r"))


def test_every_kernel_of_the_catalog_is_in_the_table(table):
    assert CHOICES.keys() == catalog.CASES.keys()
    assert set(table.kernel) == set(catalog.CASES)
    assert (table.groupby(["kernel", "choices"]).arch.agg(list).map(tuple) == ARCHES).all()


def test_ours_do_not_spill(table):
    """Extend attention, with its accumulator of head_dim columns, may; but see the test of its loops below."""
    ours = table[~table.kernel.str.startswith("sglang")]
    spilling = ours[(ours.spill_stores + ours.spill_loads > 0) & (ours.kernel != "extend_attention")]
    assert spilling.empty, spilling.to_string()
    assert len(ours) == 2 * sum(len(choices) for name, choices in CHOICES.items() if not name.startswith("sglang"))


def test_windowed_extend_attention_on_hopper_pipelines_every_loop_and_spills_in_none():
    """Whatever the table chooses for a sliding layer: a step of verify, more drafts, a short chat, a long prefill."""
    layer, regimes = {"head_dim": 256, "window": 1023, "group": 2}, ((32, 4), (32, 16), (1, 256), (1, 8192))
    tiles = {
        pick_tile(arch="sm_90", batch=batch, max_len_extend=extend, max_prefix=8192, **layer)
        for batch, extend in regimes
    }
    assert len(tiles) > 1
    for facts in compile_many([("extend_attention", "sm_90", {**layer, "tile": tile}) for tile in tiles]):
        print(facts.choices["tile"], facts.registers, facts.spills_outside, facts.loops)
        assert len(facts.loops) == 4, "masked and unmasked, over the prefix and over the new tokens"
        assert all(loop.pipelined for loop in facts.loops)
        assert facts.loop_spills == 0
        assert not facts.serialized


def test_figures_are_those_of_the_facts(table):
    row = table.query("kernel == 'router' and arch == 'sm_90'").iloc[0]
    facts = compile_facts("router", "sm_90", dtype="bf16")
    assert row.choices == "dtype=bf16"
    for name in ("registers", "shared", "num_warps", "blocks_per_sm"):
        assert row[name] == getattr(facts, name) >= 0
    assert 0 < row.registers < 256
    assert row.instructions == facts.sass.count(";")


def test_sglangs_norms_are_specialised_as_they_are_launched(table):
    choices = [{"mode": "QKV", "tokens": 256}, {"mode": "QKV", "tokens": 257}, {"mode": "Q", "tokens": 257}]
    by_head, by_token, alone = compile_many([("sglang_qkv_norm", "sm_90", each) for each in choices])
    assert "%ctaid.y" in by_head.ptx
    assert "%ctaid.y" not in by_token.ptx
    assert by_token.count("st.global") > 10 * by_head.count("st.global") > 0
    assert alone.count("st.global") * 2 == by_token.count("st.global")
    theirs = table[table.kernel.str.startswith("sglang_") & table.kernel.str.contains("norm")]
    assert set(theirs.num_warps) == {4}, "Triton's default: SGLang's launchers name no other"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"kernels": ["nope"]}, "kernels: got 'nope', expected some of router"),
        ({"kernels": ["router"], "arches": ["sm_70"]}, "arch: got 'sm_70'"),
    ],
)
def test_bad_requests(request_, expected):
    with pytest.raises(BadInput, match=expected):
        compile_table(**request_)


def test_sglang_has_no_kernel_for_shared_projections():
    with pytest.raises(BadInput, match="mode: got 'QK', expected QKV or Q"):
        compile_facts("sglang_qkv_norm", mode="QK")


def test_the_command_shows_the_table(table):
    from g4lab.commands.tune import app

    done = CliRunner().invoke(app, ["facts", "--kernel", "router", "--arch", "sm_90"])
    assert done.exit_code == 0
    assert "blocks_per_sm" in done.output
    assert "2 of 2 without spills" in done.output
