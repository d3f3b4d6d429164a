"""Loops of machine code: made-up code whose loops are known, and those of SGLang's extend attention."""

import pytest

from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.tuning.facts import compile_many
from g4lab.tuning.loops import local_bytes, matrix_loops
from g4lab.tuning.machine_code import parse


def sass(*lines: str) -> str:
    listing = "".join(f"        /*{16 * i:04x}*/   {line} ;\n" for i, line in enumerate(lines))
    return f"\t\tFunction : f\n{listing}"


def test_nested_loops_and_code_out_of_line():
    code = sass(
        "MOV R1, R2",
        "STL [R1], R4",  # 0x10: before the loops
        "IADD3 R2, R2, 0x1, RZ",  # 0x20: head of the outer loop
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x30: head of the inner loop
        "@P2 BRA 0xb0",  # to code out of line
        "LDL.64 R6, [R1+0x8]",  # 0x50: where it comes back to
        "STL.128 [R1+0x10], R8",
        "@!P1 BRA 0x30",
        "LDL.LU R4, [R1]",  # in the outer loop alone
        "@P0 BRA 0x20",
        "EXIT",
        "STL [R1+0x20], R5",  # 0xb0: in the inner loop, after the end
        "BRA 0x50",
        "BRA 0xd0",  # 0xd0: padding, a loop that nothing reaches
    )
    (loop,) = matrix_loops(code)
    assert (loop.start, loop.end, loop.instructions, loop.matrix) == (0x30, 0xC0, 7, 1)
    assert (loop.spill_stores, loop.spill_loads, loop.spills) == (16 + 4, 8, 28)
    assert local_bytes(parse(code)) == (4 + 16 + 4, 8 + 4)
    assert not loop.pipelined


def test_a_loop_without_matrix_instructions_is_none_of_these():
    assert matrix_loops(sass("FADD R1, R1, R2", "@P0 BRA 0x0", "EXIT")) == ()


def test_threads_that_meet_again_go_on_at_the_meeting_point():
    """BSYNC goes where its BSSY says: the code behind it belongs to no path that loops."""
    code = sass("BSSY B0, 0x50", "@P0 BRA 0x30", "BSYNC B0", "HMMA R4, R8, R12, R4", "BSYNC B0", "@P1 BRA 0x0", "EXIT")
    (loop,) = matrix_loops(code)
    assert (loop.start, loop.end, loop.matrix) == (0, 0x50, 1)


COPY = ("LDGSTS.E.BYPASS.128 [R2], desc[UR12][R4.64]", "LDGDEPBAR")
MMA = ("HMMA.16816.F32.BF16 R4, R8, R12, R4",)
GROUP = "HGMMA.64x64x16.F32.BF16 R4, gdesc[UR4], R4, gsb0"  # runs on until it is waited for
AGAIN = ("@P0 BRA 0x0", "EXIT")


@pytest.mark.parametrize(
    ("body", "copies", "overlapped"),
    [
        ((*MMA, *COPY, "DEPBAR.LE SB0, 0x0"), 1, 0),  # waited for at once
        ((*COPY, "DEPBAR.LE SB0, 0x0", *MMA), 1, 0),
        (("DEPBAR.LE SB0, 0x0", *MMA, *COPY, *MMA), 1, 1),  # in flight during the second only
        (("DEPBAR.LE SB0, 0x1", *MMA, *MMA, *COPY), 1, 2),  # the copy for the step after next stays in flight
        ((*COPY, *MMA, *COPY, "DEPBAR.LE SB0, 0x0"), 2, 1),
        (MMA, 0, 0),
        (("DEPBAR.LE SB0, 0x0", GROUP, *COPY), 1, 1),
        (("DEPBAR.LE SB0, 0x0", GROUP, "WARPGROUP.DEPBAR.LE gsb0, 0x0", *COPY), 1, 0),
    ],
)
def test_overlap_of_copies_and_matrix_work(body, copies, overlapped):
    (loop,) = matrix_loops(sass(*body, *AGAIN))
    assert (loop.copies, loop.overlapped) == (copies, overlapped)
    assert loop.pipelined == (overlapped > 0)


@pytest.fixture(scope="module")
def theirs():
    """SGLang's kernel by (tile, window), head_dim 256."""
    small, legacy = ExtendTile(32, 64, 4, 2), ExtendTile(128, 64, 8, 1)
    cases = [("pipelined", small, None), ("windowed", small, 1023), ("legacy", legacy, None)]
    requests = [("sglang_extend_attention", "sm_90", {"tile": tile, "window": window}) for _, tile, window in cases]
    return dict(zip([name for name, *_ in cases], compile_many(requests), strict=True))


def test_the_branch_around_the_loads_keeps_sglangs_windowed_kernel_from_pipelining(theirs):
    plain, windowed = theirs["pipelined"], theirs["windowed"]
    assert plain.pipelined
    assert all(loop.pipelined for loop in plain.loops)
    assert not windowed.pipelined
    assert "cp.async" not in windowed.ptx
    assert [len(facts.loops) for facts in (plain, windowed)] == [2, 2]  # over the prefix, over the new tokens
    assert plain.loop_spills == 0 < windowed.loop_spills


def test_the_legacy_tile_spills_in_its_loops(theirs):
    facts = theirs["legacy"]
    assert facts.mma == "wgmma"
    assert facts.serialized
    assert facts.registers == 255
    assert facts.loop_spills > 1000
    assert facts.spills_outside + sum(loop.spills for loop in facts.loops) == sum(local_bytes(parse(facts.sass)))
