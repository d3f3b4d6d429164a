"""Rooflines: floors by hand, every operation in a family, and times only where they may stand beside a floor."""

import numpy as np
import pandas as pd
import pytest
import traces

from g4lab.bench import roofline as module
from g4lab.bench.ceilings import Ceilings, chips, named
from g4lab.bench.roofline import COPY, MATMUL, NO_FLOOR, roofline
from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.gemma4.costs import operation_costs
from g4lab.trace import families

MOE, H200 = spec("26b-a4b"), named("H200 SXM")
DECODE = {"phase": "decode", "ceilings": H200}


def trace(steps, kernels, device="NVIDIA H200", phase="decode"):
    """A trace of steps (batch, tokens) and kernels (step, family, µs), 100 µs apart."""
    made = {
        "name": [f"step {i}" for i in range(len(steps))],
        "phase": [phase] * len(steps),
        "ts_us": np.arange(len(steps)) * 1000.0,
        "dur_us": [900.0] * len(steps),
        "batch": [batch for batch, _ in steps],
        "tokens": [tokens for _, tokens in steps],
        "capture": [0] * len(steps),
    }
    ran = {
        "name": [family for _, family, _ in kernels],
        "family": [family for _, family, _ in kernels],
        "ts_us": np.arange(len(kernels)) * 100.0,
        "dur_us": [micros for _, _, micros in kernels],
        "phase": [phase] * len(kernels),
        "step": [step for step, _, _ in kernels],
    }
    meta = {"devices": {0: device} if device else {}}
    return traces.trace(ran if kernels else None, steps=made if steps else None, source="a/trace.json", meta=meta)


def test_decode_of_26b_a4b_by_hand():
    """Batch 1 with 1,000 keys cached: every weight that a token needs is read once, at 4.8 TB/s."""
    table = roofline(None, MOE, context=1000, **DECODE)
    sliding = 2816 * 256 * (16 + 16 + 8 + 8)  # q, o, k, v
    full = 2816 * 512 * (16 + 16 + 2)  # K serves as V
    mlp, head, router = 3 * 2816 * 2112, 262_144 * 2816, 2816 * 128
    dense = 25 * sliding + 5 * full + 30 * (mlp + router) + head
    scales = 30 * (2816 + 128)  # the router's, which only move
    assert table.loc["dense GEMM", "bytes"] == 2 * (dense + scales)
    assert table.loc["dense GEMM", "flops"] == 2 * dense
    assert table.loc["dense GEMM", "floor_us"] == pytest.approx(2 * (dense + scales) / 4.8e12 * 1e6)
    experts = 30 * 8 * 3 * 2816 * 704
    assert table.loc["MoE GEMM", "floor_us"] == pytest.approx(2 * experts / 4.8e12 * 1e6)
    kv = 25 * 2 * 8 * 256 + 5 * 2 * 2 * 512  # values of a token
    assert table.loc["decode attention", "bytes"] == 2 * kv * 1001
    assert table.loc["KV write", "bytes"] == 2 * kv
    assert set(table["binds"]) == {COPY}
    assert table.index.tolist() == ["dense GEMM", "MoE GEMM", "decode attention", "KV write"]


def test_prefill_is_bound_by_the_matrix_rate():
    table = roofline(None, MOE, phase="prefill", new_tokens=8000, ceilings=H200)
    assert table["binds"].to_dict() == {
        "dense GEMM": MATMUL,
        "MoE GEMM": MATMUL,
        "extend attention": MATMUL,
        "KV write": COPY,
    }
    costs = operation_costs(MOE, new_tokens=8000)
    attention = sum(cost.flops for cost in costs if cost.part.endswith(" attention"))
    assert table.loc["extend attention", "floor_us"] == pytest.approx(attention / 989.5e12 * 1e6)


def test_the_ceiling_that_binds_turns_at_the_chips_intensity():
    """Dense weights serve every token of the step: FLOPs per byte grow with the batch until the matrix rate binds."""
    dense = spec("31b")
    rows = [roofline(None, dense, batch=b, **DECODE).loc["dense GEMM"] for b in (64, 128, 256, 512)]
    for row in rows:
        assert row["binds"] == (COPY if row["flops"] / row["bytes"] <= H200.flops_per_byte else MATMUL)
    assert {row["binds"] for row in rows} == {COPY, MATMUL}


@pytest.mark.parametrize("name", ["26b-a4b", "31b", "e4b", "e2b"])
@pytest.mark.parametrize("step", [{"phase": "decode"}, {"phase": "prefill", "new_tokens": 300}])
def test_nothing_but_norms_is_left_without_a_family(name, step):
    kept = roofline(None, spec(name), ceilings=H200, **step)
    costs = operation_costs(spec(name), new_tokens=step.get("new_tokens", 1))
    (norms,) = (cost.bytes for cost in costs if cost.part == "norms")
    assert kept["bytes"].sum() == pytest.approx(sum(cost.bytes for cost in costs) - norms)
    assert kept["flops"].sum() == pytest.approx(sum(cost.flops for cost in costs))
    assert set(kept.index) <= set(families.families("kernel"))
    assert (kept["floor_us"] > 0).all()


def test_a_draft_is_verified_by_extend_attention():
    table = roofline(None, MOE, phase="verify", new_tokens=4, context=5000, batch=8, ceilings=H200)
    assert "extend attention" in table.index
    assert table.loc["MoE GEMM", "flops"] == 32 * 2 * 30 * 8 * 3 * 2816 * 704


def test_ranks_and_routing_change_the_floor():
    one, two = (roofline(None, MOE, tp=tp, **DECODE) for tp in (1, 2))
    assert two.loc["MoE GEMM", "floor_us"] == one.loc["MoE GEMM", "floor_us"] / 2
    assert "one of 2 ranks" in two.title
    always = [1.0] * 8 + [0.0] * 120
    skewed, uniform = (roofline(None, MOE, batch=64, probabilities=p, **DECODE) for p in (always, None))
    assert skewed.loc["MoE GEMM", "bytes"] == one.loc["MoE GEMM", "bytes"]
    assert skewed.loc["MoE GEMM", "floor_us"] < uniform.loc["MoE GEMM", "floor_us"]
    assert uniform.title.endswith("uniform routing")
    assert "routing" not in skewed.title


def test_without_a_trace_the_table_is_a_named_chips():
    for chip in chips().values():
        table = roofline(None, MOE, phase="decode", ceilings=chip)
        assert f"floor for {chip.chip}" in table.title
        assert table.provenance == ("published", f"ceilings: {chip.source}")
        assert "measured_us" not in table


def test_measured_time_per_step_of_the_steps_that_are_alike():
    kernels = [(0, "MoE GEMM", 900.0), (0, "MoE GEMM", 300.0), (1, "MoE GEMM", 1000.0), (1, "norm", 50.0)]
    kernels += [(0, "decode attention", 10.0), (1, "extend attention", 30.0), (2, "MoE GEMM", 9999.0)]
    table = roofline(trace([(1, 1), (1, -1), (8, 8)], kernels), MOE, context=1000, **DECODE)
    assert table["measured_us"].dropna().to_dict() == {"MoE GEMM": 1100.0, "decode attention": 20.0, "norm": 25.0}
    row = table.loc["MoE GEMM"]
    assert row["ratio"] == 1100.0 / row["floor_us"]
    assert table.loc["norm", "binds"] == NO_FLOOR
    assert np.isnan(table.loc["norm", "floor_us"])
    assert table.index[-1] == "norm"
    assert table.provenance == ("recorded", f"trace.json; ceilings: {H200.source} (published)")


def test_a_table_on_record_stands_in_for_a_trace():
    table = roofline(pd.Series({"MoE GEMM": 1200, "routing": 80, "rope": 0}), MOE, **DECODE)
    assert table.loc["MoE GEMM", "measured_us"] == 1200
    assert table.loc["routing", "binds"] == NO_FLOOR
    assert "rope" not in table.index
    assert table.provenance[0] == "recorded"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (trace([(1, 1)], []), "the trace is of a CPU"),
        (trace([], [(-1, "norm", 1.0)]), "the trace marks no decode steps"),
        (trace([(1, 1)], [(0, "norm", 1.0)], phase="prefill"), "the trace marks no decode steps"),
    ],
)
def test_where_times_may_not_stand_the_title_says_why(made, why):
    table = roofline(made, MOE, **DECODE)
    assert "measured_us" not in table
    assert why in table.title
    assert table.provenance[0] == "published"


def test_times_of_another_step_or_chip_are_refused():
    made = trace([(8, 8), (8, 8)], [(0, "norm", 1.0)])
    with pytest.raises(BadInput, match=r"1 sequences with 1 tokens.*8 sequences with 8 tokens \(2 steps\)"):
        roofline(made, MOE, **DECODE)
    made = trace([(1, 1)], [(0, "norm", 1.0)], device="Tesla V100-SXM2-16GB")
    with pytest.raises(BadInput, match="ceilings: got 'H200 SXM', expected those of the trace's GPU: Tesla V100"):
        roofline(made, MOE, **DECODE)


@pytest.mark.parametrize(
    ("chip", "gpu", "fits"),
    [
        ("H200 SXM", "NVIDIA H200", True),
        ("H100 SXM", "NVIDIA H100 80GB HBM3", True),
        ("A100 SXM 80GB", "NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA H200", "NVIDIA H200", True),
        ("B200", "NVIDIA GB200", False),
        ("H100 SXM", "NVIDIA H200", False),
        ("H100 SXM", None, True),
    ],
)
def test_which_gpu_a_chip_is(chip, gpu, fits):
    made = trace([(1, 1)], [(0, "norm", 1.0)], device=gpu)
    ceilings = Ceilings(chip, 4000.0, 800.0, None, "live", "made for a test")
    if fits:
        assert "measured_us" in roofline(made, MOE, phase="decode", ceilings=ceilings)
    else:
        with pytest.raises(BadInput, match="those of the trace's GPU"):
            roofline(made, MOE, phase="decode", ceilings=ceilings)


def test_bad_arguments_are_named():
    with pytest.raises(BadInput, match="phase: got 'idle', expected one of prefill, decode, verify"):
        roofline(None, MOE, phase="idle", ceilings=H200)
    with pytest.raises(
        BadInput, match="new_tokens: got None, expected the tokens that one sequence computes in a pref"
    ):
        roofline(None, MOE, phase="prefill", ceilings=H200)
    with pytest.raises(BadInput, match="context: got 262144"):
        roofline(None, MOE, context=262_144, **DECODE)
    with pytest.raises(BadInput, match="tp: got 3"):
        roofline(None, MOE, tp=3, **DECODE)


def test_every_family_is_one_of_the_rules():
    assert set(module.FAMILY.values()) | {"extend attention", "decode attention"} <= set(families.families("kernel"))


@pytest.mark.parametrize("measured", [None, pd.Series({"MoE GEMM": 1200.0, "norm": 80.0})])
def test_figure(measured):
    table = roofline(measured, MOE, batch=8, context=8000, **DECODE)
    figure = table.plot()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == table.index.tolist()
    assert len(axes.patches) == 4  # a bar a floor
    assert len(axes.lines) == (0 if measured is None else 2)  # a diamond a time
    kind = "published" if measured is None else "recorded"
    assert figure.get_supxlabel().startswith(f"{kind} · ")
    assert "floor for H200 SXM" in " ".join(figure.get_suptitle().split())


@pytest.mark.gpu
def test_ceilings_and_floors_of_one_run():
    from g4lab.bench.ceilings import measure

    table = roofline(None, MOE, phase="decode", ceilings=measure(rounds=10))
    assert table.provenance[0] == "live"
    assert "floor measured on" in table.title
