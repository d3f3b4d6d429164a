"""The tuner: rules on made-up machine code, pruning and ranking of real compile facts, timings that outlive a kill."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from g4lab import env
from g4lab.bench.timing import Timed
from g4lab.errors import BadInput
from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.published import published
from g4lab.tuning import chips, tile_model, tile_report, tile_rules, tile_space, tune
from g4lab.tuning.extend_shapes import PUBLISHED, SHAPES, ExtendShape, select, shape
from g4lab.tuning.facts import CompileFacts, compile_many
from g4lab.tuning.tile_rules import WORDS, Candidate

SGLANG = tile_space.tunable("sglang_extend_attention")
OURS = tile_space.tunable("extend_attention")
HOPPER = chips.chip("sm_90")
LEGACY = ExtendTile(128, 64, 8, 1)
# A small space: what pyc96/sglang#4 and SGLang chose, and neighbours. The windowed ones stand for any stages.
SMALL = [LEGACY, ExtendTile(64, 64, 8, 1), ExtendTile(32, 64, 4, 2), ExtendTile(16, 64, 4, 1), ExtendTile(16, 64, 4, 2)]
SMALL += [ExtendTile(32, 32, 4, 2)]


def made_up(tile, *, spills=0, copies=0, overlapped=0, blocks_per_sm=1, registers=128):
    """A candidate whose only loop has 8 matrix instructions, spills that many registers and overlaps so many copies."""
    wait = ["DEPBAR.LE SB0, 0x0"] if copies else []
    copy = ["LDGSTS [R2], desc[UR4][R4.64]"] * copies + ["LDGDEPBAR"]
    mma = ["HMMA.16816.F32.BF16 R4, R8, R12, R4"]
    body = [*["STL [R1], R4"] * spills, *wait, *mma * (8 - overlapped), *copy, *mma * overlapped]
    lines = [*body, "@P0 BRA 0x0", "EXIT"]
    sass = "\t\tFunction : f\n" + "".join(f"  /*{16 * i:04x}*/  {line} ;\n" for i, line in enumerate(lines))
    facts = CompileFacts(
        "made_up", "sm_90", {}, registers, 4 * spills, 0, 1024 * tile.num_stages, tile.num_warps, blocks_per_sm,
        "mma.sync", False, "", sass,
    )  # fmt: skip
    return Candidate(tile, facts)


def test_registers_and_buffers_of_the_tile_alone():
    chat, full = shape("verify chat"), shape("prefill long full tp1")
    why = tile_rules.before_compiling
    assert why("sm_90", chat, LEGACY) is None, "128 x (256 + 64) values in 256 threads: 160 registers"
    assert why("sm_90", chat, ExtendTile(128, 64, 4, 1)) == "registers"
    assert why("sm_100", chat, ExtendTile(128, 64, 4, 1)) is None, "there the accumulator is in tensor memory"
    assert why("sm_100", full, ExtendTile(32, 128, 4, 2)) == "buffers", "2 x 128 x 512 x 2 bytes"
    assert why("sm_100", full, ExtendTile(32, 128, 4, 1)) is None


def test_spills_are_weighed_against_the_matrix_work():
    """32 x 64 x 256: 2 MFLOP, 814 cycles; 128 threads that spill 4 bytes take the L1 4 cycles."""
    tile, chat = ExtendTile(32, 64, 4, 2), shape("prefill chat")
    assert tile_rules.spills_little(HOPPER, chat, made_up(tile, spills=101))
    assert not tile_rules.spills_little(HOPPER, chat, made_up(tile, spills=102))


def test_equal_machine_code_is_one_candidate():
    one, two, three = (made_up(ExtendTile(16, 64, 4, stages)) for stages in (1, 2, 3))
    three = Candidate(three.tile, one.facts)
    merged = tile_rules.merge_same([three, two, one])
    assert [(each.tile, each.same) for each in merged] == [(one.tile, (three.tile,)), (two.tile, ())]


def test_dominated_by_another_number_of_stages():
    plain = made_up(ExtendTile(16, 64, 4, 1), blocks_per_sm=2)
    free = made_up(ExtendTile(16, 64, 4, 2), blocks_per_sm=2, copies=2, overlapped=4)
    deep = made_up(ExtendTile(16, 64, 4, 3), blocks_per_sm=1, copies=2, overlapped=8)
    wide = made_up(ExtendTile(16, 64, 8, 2), blocks_per_sm=4, copies=2, overlapped=8)
    everyone = [plain, free, deep, wide]
    assert tile_rules.dominated(plain, everyone), "pipelining cost no block"
    assert not tile_rules.dominated(free, everyone), "the third stage costs a block"
    assert not tile_rules.dominated(deep, everyone)
    spilling = made_up(ExtendTile(16, 64, 4, 3), blocks_per_sm=2, copies=2, overlapped=4, spills=1)
    assert tile_rules.dominated(spilling, [free, spilling])
    assert not tile_rules.dominated(free, [free, free])


def test_too_few_programs_for_the_gpu():
    """One sequence, 4 KV heads at most, no split keys: rows that are empty lengthen every program."""
    one = shape("verify one after 64k full tp2")
    tiles = [made_up(ExtendTile(m, 64, 4, 1)) for m in (16, 32, 64)]
    assert tile_rules.too_much_work(SGLANG, HOPPER, one, tiles) == tiles[2:]
    assert tile_rules.too_much_work(SGLANG, HOPPER, one, []) == []


@given(
    batch=st.integers(1, 3), extend=st.integers(1, 40), prefix=st.integers(0, 70),
    window=st.none() | st.integers(1, 50), block_m=st.sampled_from([16, 32]), block_n=st.sampled_from([16, 32]),
    kernel=st.sampled_from([SGLANG, OURS]),
)  # fmt: skip
def test_blocks_cover_what_is_visible_and_no_whole_block_more(batch, extend, prefix, window, block_m, block_n, kernel):
    case = ExtendShape("any", batch, extend, prefix, window, num_q_heads=4, num_kv_heads=2, head_dim=64)
    work = kernel.work(case, ExtendTile(block_m, block_n, 4, 1), sms=1)  # one SM: no reason to split
    group, heads = (2, 2) if kernel.packs else (1, 4)
    total = longest = 0
    for first in range(0, extend * group, block_m):
        rows = range(first, min(first + block_m, extend * group))
        seen = {
            key
            for row in rows
            for key in range(prefix + row // group + 1)
            if window is None or prefix + row // group - key <= window
        }
        for part, origin in (({k for k in seen if k < prefix}, 0), ({k for k in seen if k >= prefix}, prefix)):
            start = min(part, default=0) if kernel.packs else origin
            blocks = {(key - start) // block_n for key in part}
            total += len(blocks)
        longest += 1
    assert work.blocks == total * batch * heads
    assert work.programs == longest * batch * heads
    assert 1 <= work.longest <= work.blocks


def test_no_estimate_beats_the_bound():
    for case in SHAPES:
        for tile in (ExtendTile(16, 64, 4, 2), ExtendTile(64, 64, 8, 1)):
            each = made_up(tile, copies=2, overlapped=8)
            least = tile_model.bound(OURS, HOPPER, case, tile, "mma.sync")
            cycles, computing = tile_model.estimate(OURS, HOPPER, case, tile, each.facts)
            assert cycles >= least > 0
            assert cycles >= computing > 0
            assert HOPPER.us(least) >= 0.999e-3 * case.bytes / 4800


@pytest.fixture(scope="module")
def verdicts():
    return tune.survey("sglang_extend_attention", "sm_90", PUBLISHED, tiles=SMALL, progress=lambda done, total: None)


def winners() -> dict[str, list[ExtendTile]]:
    """Every tile that pyc96/sglang#4 reports as a shape's best: its table, and its first sweep."""
    table = published("extend_attention_microbench")
    found: dict[str, list[ExtendTile]] = {}
    for row in table[table.variant.str.startswith("tile") & ~table.variant.str.contains("128,64")].itertuples():
        size, _, warps, _, stages = row.variant.removeprefix("tile ").split()
        name = row.case.removesuffix(", first sweep")
        found.setdefault(name, []).append(ExtendTile(*map(int, size.split(",")), int(warps), int(stages)))
    return found


def kept(verdict) -> set[ExtendTile]:
    return {tile for each, _ in verdict.ranked for tile in each.tiles}


def test_pruning_keeps_every_published_winner_and_removes_what_they_beat(verdicts):
    """On windowed layers SGLang's kernel has the same machine code at any number of stages: one stands for them."""
    best = winners()
    assert set(best) == {each.name for each in PUBLISHED} | {"prefill multi"}
    assert set(best["verify burst"]) == {ExtendTile(16, 64, 4, 2), ExtendTile(32, 32, 4, 2)}
    for verdict in verdicts:
        assert set(best[verdict.shape.name]) <= kept(verdict)
        assert verdict.removed[LEGACY] == "spills"
    prefill = next(each for each in verdicts if each.shape.name == "prefill long")
    assert kept(prefill) >= set(best["prefill multi"]), "its shape has the same layer"


def test_the_verdict_on_the_published_tiles_does_not_hang_on_the_limit_of_spills():
    """Which is half: the winners' loops spill less than a quarter of the matrix time, the legacy tile's twice it."""
    for name in ("prefill long", "verify burst"):  # a layer without and one with a window
        tiles = [*winners()[name], LEGACY]
        found = compile_many([SGLANG.request("sm_90", shape(name), tile) for tile in tiles])
        *best, legacy = map(Candidate, tiles, found)
        assert all(tile_rules.spills_little(HOPPER, shape(name), each, share=0.25) for each in best)
        assert not tile_rules.spills_little(HOPPER, shape(name), legacy, share=2.0)


def test_every_tile_has_one_verdict(verdicts):
    for verdict in verdicts:
        assert set(verdict.removed) | {each.tile for each, _ in verdict.ranked} == set(SMALL)
        assert sum(verdict.counts.values()) + len(verdict.ranked) == len(SMALL)
        assert list(verdict.counts) == list(WORDS)
        times = [us for _, us in verdict.ranked]
        assert times == sorted(times)
        assert verdict.best == verdict.ranked[0][0].tile
    frame = tile_report.pruning(verdicts)
    assert (frame.drop(columns=["shape", "tiles", "left"]).sum(axis=1) + frame.left == frame.tiles).all()
    said = "\n".join(tile_report.words(verdicts))
    assert all(text in said for text in WORDS.values())
    assert f"spills ({frame.spills.sum()} removed)" in said


def fake_timer(calls, stop_at=None):
    """Microseconds that put the last tile first; what the bench would say, without a GPU."""

    def timer(case, tiles):
        if case.name == stop_at:
            raise KeyboardInterrupt
        calls.append(case.name)
        times = {str(tile): {"n": 9, "p20_us": 1.0, "p50_us": 9.0 - i, "p80_us": 10.0} for i, tile in enumerate(tiles)}
        times[str(tiles[0])] = {"reason": "out of resource"}
        return {"times": times, "aa_low": 0.99, "aa_high": 1.01}

    return timer


def test_a_killed_run_goes_on_and_ends_with_the_same_table(verdicts, tmp_path):
    kernel, state = "sglang_extend_attention", tmp_path / "timings.jsonl"
    calls = []
    with pytest.raises(KeyboardInterrupt):
        tune.time_survivors(kernel, "sm_90", verdicts, fake_timer(calls, stop_at="verify burst"), state)
    with state.open("a") as file:
        file.write('{"key": {"kern')  # killed in the middle of a line
    first = list(calls)
    timed = tune.time_survivors(kernel, "sm_90", verdicts, fake_timer(calls), state)
    assert calls == [each.name for each in PUBLISHED]
    assert first == calls[: calls.index("verify burst")]
    again = tune.time_survivors(kernel, "sm_90", verdicts, None, state)
    text = tune.table(kernel, "sm_90", timed)
    assert tune.table(kernel, "sm_90", again) == text
    for verdict, row in zip(timed, json.loads(text)["shapes"], strict=True):
        assert verdict.best == verdict.to_time[-1]
        assert row["basis"] == f"timed on {env.machine_name()}"
        assert row["ranked"][0]["reason"] == "out of resource"
        assert row["aa"] == [0.99, 1.01]
    other_code = [json.loads(line) for line in state.read_text().splitlines() if line.endswith("}")]
    other_code[0]["key"]["code"] = "older"
    state.write_text("".join(json.dumps(entry) + "\n" for entry in other_code))
    stale = tune.time_survivors(kernel, "sm_90", verdicts, None, state)
    assert [bool(each.timing) for each in stale] == [False] + [True] * (len(PUBLISHED) - 1)


def test_the_timers_summary():
    from g4lab.bench import suite
    from g4lab.bench.tile_timing import READING, summary

    samples = {READING: [10.0, 11.0, 12.0], "warm": [1.0]}
    timed = {"a": Timed(samples), "b": Timed({}, "does not fit"), suite.again("a"): Timed(samples)}
    found = summary("a", timed)
    assert found["times"] == {
        "a": {"n": 3, "p20_us": 10.4, "p50_us": 11.0, "p80_us": 11.6},
        "b": {"reason": "does not fit"},
    }
    assert found["aa_low"] <= 1 <= found["aa_high"]


def test_the_command_writes_the_same_table_twice(verdicts, tmp_path, monkeypatch):
    from g4lab.commands.tune import app

    monkeypatch.setattr(tile_space, "tiles", lambda arch: SMALL)
    out = tmp_path / "tiles.json"
    arguments = ["sglang_extend_attention", "--shapes", "verify-burst", "--shapes", "prefill long", "--out", str(out)]
    first = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert first.exit_code == 0, first.output
    assert "nothing timed: --dry-run" in first.output
    assert all(each in first.output for each in ("same code", "spills", "verify burst", "32x64 w4 s2"))
    table = out.read_bytes()
    shutil.move(out, tmp_path / "first.json")
    assert CliRunner().invoke(app, [*arguments, "--dry-run"]).exit_code == 0
    assert out.read_bytes() == table
    shown = CliRunner().invoke(app, [*arguments[:5], "--dry-run"])
    assert shown.exit_code == 0
    assert "no table written" in shown.output, "a part of the shapes must not take the whole table's place"
    written = json.loads(table)
    assert [row["shape"]["name"] for row in written["shapes"]] == ["verify burst", "prefill long"]
    assert {row["basis"] for row in written["shapes"]} == {"compile facts and a model, not timed"}


def test_the_committed_tables_are_of_this_tuner():
    """Written by `g4lab tune KERNEL --arch sm_90` over the whole space: rules, shapes, winners and the legacy tile."""
    best = winners()
    for kernel in tile_space.TUNABLES:
        written = json.loads((env.data_dir() / "tiles" / "sm_90" / f"{kernel}.json").read_text())
        assert written["rules"] == WORDS
        assert [row["shape"]["name"] for row in written["shapes"]] == [each.name for each in SHAPES]
        space = {str(tile) for tile in tile_space.tiles("sm_90")}
        for row in written["shapes"]:
            assert sum(row["removed"].values()) - len(space) + len(row["ranked"]) == len(space)
            left = {tile for each in row["ranked"] for tile in (each["tile"], *each["same"])}
            assert left <= space
            if kernel == SGLANG.kernel:
                assert str(LEGACY) not in left
                timed = {tile for each in row["ranked"][: tune.KEEP] for tile in (each["tile"], *each["same"])}
                assert {str(tile) for tile in best.get(row["shape"]["name"], ())} <= timed


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (("router", "sm_90"), "kernel: got 'router', expected one of extend_attention"),
        (("extend_attention", "sm_89"), "arch: got 'sm_89', expected one of sm_80, sm_90"),
    ],
)
def test_bad_requests(request_, expected):
    with pytest.raises(BadInput, match=expected):
        tune.survey(*request_, select(["verify chat"]))
