"""What the compiler made of the kernels, for GPUs that are not here."""

import subprocess

import pytest

from g4lab.errors import BadInput, Unavailable
from g4lab.tuning import compile_facts, compile_many
from g4lab.tuning import facts as facts_module
from g4lab.tuning.arches import ARCHES
from g4lab.tuning.facts import compile_each
from g4lab.tuning.machine_code import eager_softmax, parse, softmax_steps

TARGETS = ("sm_80", "sm_90", "sm_100")
DTYPES = ("bf16", "fp16", "fp32")


@pytest.fixture(scope="module")
def facts():
    requests = [("router", arch, {"dtype": dtype}) for arch in TARGETS for dtype in DTYPES]
    requests += [
        ("router", "sm_90", {"num_experts": 1024, "top_k": 16, "dtype": "fp32"}),
        ("sglang_router", "sm_90", {}),
    ]
    compiled = compile_many(requests, progress=lambda done, total: print(f"compiled {done}/{total}"))
    return dict(zip([(k, a, c.get("dtype"), c.get("top_k", 8)) for k, a, c in requests], compiled, strict=True))


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_router_fits_its_registers(facts, arch, dtype):
    found = facts["router", arch, dtype, 8]
    print(f"{arch} {dtype}: {found.registers} registers, {found.shared} B shared, {found.blocks_per_sm} blocks per SM")
    assert found.spill_stores == found.spill_loads == 0
    assert found.shared == 0, "one warp, no layout change through shared memory"
    assert 0 < found.registers <= 64
    assert found.blocks_per_sm == 32


def test_the_largest_router_does_not_spill(facts):
    found = facts["router", "sm_90", "fp32", 16]
    print(f"E=1024, K=16, fp32: {found.registers} registers")
    assert found.spill_stores == found.spill_loads == 0


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_router_computes_as_eager_does(facts, arch, dtype):
    found = facts["router", arch, dtype, 8]
    assert found.count("div.rn.f32") == found.count("div.") == 1
    # The accurate expf: clamp and round to an integer, two fma for the remainder, ex2 of that, and nothing else.
    assert found.count("ex2.approx") == found.count("cvt.sat.f32.f32") == found.count("fma.rm.f32") == 1
    assert found.count("fma.rn.f32") == 3, "no multiply-add outside expf"
    assert found.count("shfl.sync.bfly") == 3
    distances = [line.split(",")[2].strip() for line in found.ptx.splitlines() if "shfl.sync.bfly" in line]
    assert distances == ["4", "2", "1"]
    selections = 8 if dtype != "fp32" else 16
    assert found.count("redux.sync.max.s32") == selections, "the choice stays in integers, one instruction a round"


def test_sglangs_router_is_another_computation(facts):
    """What SGLang PR #26588 had to revert: approximate exp and division; the counters above can tell the difference."""
    found = facts["sglang_router", "sm_90", None, 8]
    assert found.count("div.full.f32") == found.count("div.") > 0
    assert found.count("ex2.approx") > 0 == found.count("cvt.sat.f32.f32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_eagers_machine_code(facts, dtype):
    """Step for step what PyTorch's own sm_90 kernel does: same operations, constants and roundings, same order."""
    ours = softmax_steps(facts["router", "sm_90", dtype, 8].sass)
    assert len(ours) == 21
    assert [step.split(" = ")[1].split()[0] for step in ours[:2]] == ["FADD", "FFMA.SAT"]
    assert ours == softmax_steps(eager_softmax(dtype, 8, "sm_90"))


def test_a_second_request_compiles_nothing(facts, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("started a process for cached facts")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert compile_facts("router", arch="sm_90", dtype="bf16") == facts["router", "sm_90", "bf16", 8]


def test_cache_belongs_to_the_choices(tmp_path, monkeypatch):
    monkeypatch.setenv("G4LAB_CACHE", str(tmp_path))
    one = compile_facts("router", num_experts=64, top_k=4)
    assert len(list(tmp_path.rglob("*.json.gz"))) == 1
    (tmp_path / "compile_facts" / "unrelated.json.gz").write_text("{")
    assert compile_facts("router", num_experts=64, top_k=4) == one


def test_what_takes_too_long_is_cached_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("G4LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(facts_module, "LIMIT_S", 0.5)  # importing Triton takes longer
    slow, known = ("router", "sm_90", {"top_k": 2}), ("router", "sm_90", {"top_k": 3})
    seen = []
    (first,) = compile_each([slow], progress=lambda done, total: seen.append((done, total)))
    assert isinstance(first, Unavailable)
    assert str(first) == "router for sm_90 did not compile within 0.5 s of CPU time"
    assert seen == [(0, 1), (1, 1)]
    monkeypatch.setattr(facts_module, "LIMIT_S", 60.0)
    again, other = compile_each([slow, known])
    assert str(again) == str(first), "the verdict stays, as the compiler's does"
    assert other.registers > 0
    with pytest.raises(Unavailable, match="did not compile within"):
        compile_many([known, slow])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (("nope", "sm_90", {}), "kernel: got 'nope', expected one of router"),
        (("router", "sm_70", {}), "arch: got 'sm_70', expected one of sm_80"),
        (("router", "sm_90", {"tile": 3}), "choices: got 'tile', expected some of dtype"),
        (("router", "sm_90", {"dtype": "int8"}), "dtype: got 'int8'"),
    ],
)
def test_bad_requests(request_, expected):
    with pytest.raises(BadInput) as error:
        compile_many([request_])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [(255, 8, 98 * 1024, 1), (255, 4, 86 * 1024, 2), (243, 4, 43 * 1024, 2), (244, 8, 102 * 1024, 1), (20, 1, 0, 32)],
)
def test_blocks_per_sm_on_hopper(registers, warps, shared, blocks):
    assert ARCHES["sm_90"].blocks_per_sm(registers, warps, shared) == blocks


SASS = """
		Function : f
        /*0000*/                   FADD R3, R1, -R2 ;                                  /* 0x1 */
        /*0010*/                   FMUL.FTZ R4, RZ, R3.reuse ;                         /* 0x2 */
        /*0020*/              @!P0 BRA 0x40 ;                                          /* 0x3 */
"""


def test_machine_code_is_parsed():
    code = parse(SASS)
    assert [step.opcode for step in code] == ["FADD", "FMUL.FTZ", "BRA"]
    assert code[1].operands == ["R4", "RZ", "R3"]
    assert code[2].address == 0x20


def test_no_machine_code_is_a_clear_error():
    with pytest.raises(BadInput, match="expected the text of `cuobjdump -sass`"):
        parse("nothing")
