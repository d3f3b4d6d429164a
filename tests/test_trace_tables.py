"""Tables of a trace small enough to add up by hand, and of real captures."""

import numpy as np
import pytest
from traces import CAPTURES, loaded, trace

from g4lab.errors import BadInput
from g4lab.trace import kernel_table, launches_per_token, per_step, top
from g4lab.trace.tables import by_phase, coverage

KERNELS = {
    "name": ["_fwd_kernel", "fused_moe_kernel", "fused_moe_kernel", "_fwd_kernel_stage1", "fused_moe_kernel", "mine"],
    "ts_us": [0.0, 30.0, 50.0, 100.0, 104.0, 500.0],
    "dur_us": [30.0, 10.0, 20.0, 5.0, 5.0, 30.0],
    "phase": ["prefill", "prefill", "prefill", "decode", "decode", "unknown"],
    "step": [0, 0, 0, 1, 1, -1],
}
STEPS = {
    "name": ["step[EXTEND bs=2 toks=16]", "step[DECODE bs=2]"],
    "phase": ["prefill", "decode"],
    "batch": [2, 2],
    "tokens": [16, 2],
    "ts_us": [0.0, 90.0],
    "dur_us": [80.0, 30.0],
    "capture": [0, 0],
}
LAUNCHES = {
    "name": ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize"],
    "ts_us": [0.0, 1.0, 2.0, 95.0, 97.0],
    "dur_us": [1.0] * 5,
    "step": [0, 0, 0, 1, 1],
    "phase": ["prefill"] * 3 + ["decode"] * 2,
    "capture": [0] * 5,
}


@pytest.fixture
def served():
    return trace(KERNELS, steps=STEPS, launches=LAUNCHES)


def test_family_table_adds_up(served):
    table = kernel_table(served)
    assert table.index.tolist() == ["MoE GEMM", "extend attention", "other", "decode attention"]
    assert table.loc["MoE GEMM", ["calls", "total_us", "mean_us", "median_us"]].tolist() == [3, 35, 35 / 3, 10]
    assert table["total_us"].sum() == 100
    assert table["share"].sum() == 1
    assert table.loc["extend attention", "share"] == 0.3
    assert table.loc["MoE GEMM", "per_step_us"] == 35 / 2
    assert table.loc["other", "per_step_us"] == 0  # outside every step
    assert table.loc["MoE GEMM", "p99_us"] == pytest.approx(np.quantile([10, 20, 5], 0.99))


def test_a_phase_counts_its_own_time_and_steps_only(served):
    table = kernel_table(served, by="name", phase="decode")
    assert table["total_us"].to_dict() == {"_fwd_kernel_stage1": 5, "fused_moe_kernel": 5}
    assert table["family"].to_dict() == {"_fwd_kernel_stage1": "decode attention", "fused_moe_kernel": "MoE GEMM"}
    assert table["share"].tolist() == [0.5, 0.5]
    assert table["per_step_us"].tolist() == [5, 5]
    assert "in decode" in table.title


def test_without_steps_nothing_is_per_step():
    assert kernel_table(trace(KERNELS | {"step": [-1] * 6}))["per_step_us"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "kernel"}, r"by: got 'kernel', expected one of family, name"),
        ({"phase": "Decode"}, r"phase: got 'Decode', expected one of prefill, decode, verify"),
        ({"phase": "verify"}, r"phase: got 'verify', expected a phase of this trace: prefill, decode, unknown"),
        ({"of": "cpu"}, r"of: got 'cpu', expected one of kernels, operators"),
    ],
)
def test_bad_arguments_are_named(served, arguments, message):
    with pytest.raises(BadInput, match=message):
        kernel_table(served, **arguments)


def test_top_says_how_much_it_covers(served):
    table = top(served, 1)
    assert table.index.tolist() == ["fused_moe_kernel"]
    assert table.title == "Top 1 of 4 kernels, 35.0% of their time"
    with pytest.raises(BadInput, match="n: got 0"):
        top(served, 0)


def test_per_step(served):
    table = per_step(served)
    assert table["phase"].tolist() == ["prefill", "decode"]
    assert table["busy_us"].tolist() == [60, 9]  # the two decode kernels overlap by one
    assert table["idle_us"].tolist() == [10, 0]
    assert table["launches"].tolist() == [3, 0]
    assert table["graph_launches"].tolist() == [0, 1]
    assert table["kernels"].tolist() == [3, 2]
    assert table["MoE GEMM"].tolist() == [30, 5]
    assert "other" not in table  # it occurs outside of steps only


def test_launches_per_token(served):
    table = launches_per_token(served)
    assert table.index.tolist() == ["prefill", "decode"]
    assert table.loc["prefill", ["launches_per_token", "kernels_per_token"]].tolist() == [3 / 16, 3 / 16]
    assert table.loc["decode", ["graph_launches_per_token", "kernels_per_step"]].tolist() == [0.5, 2]


def test_tokens_unknown_in_one_step_are_unknown_for_its_phase():
    made = trace(KERNELS, steps=STEPS | {"tokens": [16, -1]}, launches=LAUNCHES)
    table = launches_per_token(made)
    assert table["tokens"].isna().tolist() == [False, True]
    assert table.loc["decode", "kernels_per_step"] == 2
    assert np.isnan(table.loc["decode", "kernels_per_token"])


def test_phases_side_by_side(served):
    table = by_phase(served)
    assert list(table.columns) == ["share_prefill", "share_decode", "share_unknown"]
    assert table.sum().tolist() == [1, 1, 1]
    assert table.loc["extend attention"].tolist() == [0.5, 0, 0]


def test_unmatched_time_is_reported(served):
    row = coverage(served).loc["kernels"]
    assert row[["total_us", "matched_us", "unmatched_us"]].tolist() == [100, 70, 30]
    assert row["coverage"] == 0.7
    assert row["top_unmatched"] == "mine 30.0"


def test_operators_count_their_own_time_and_say_they_are_no_kernels():
    operators = {
        "name": ["aten::linear", "aten::mm"],
        "ts_us": [0.0, 2.0],
        "dur_us": [10.0, 7.0],
        "self_us": [3.0, 7.0],
        "phase": ["prefill"] * 2,
        "step": [0, 0],
    }
    made = trace(operators=operators, steps=STEPS)
    table = kernel_table(made, by="name")
    assert table["total_us"].to_dict() == {"aten::mm": 7, "aten::linear": 3}
    assert "no kernel performance" in table.title
    assert per_step(made)["busy_us"].tolist() == [10, 0]
    assert "operators_per_token" in launches_per_token(made)


def test_an_empty_trace_gives_empty_tables():
    empty = trace()
    for table in (kernel_table(empty), top(empty), per_step(empty), launches_per_token(empty), by_phase(empty)):
        assert table.empty
    assert coverage(empty).empty


def test_the_real_trace_adds_up(shared_traces):
    made = loaded(shared_traces / "v100_training_hta.json.gz")
    families, names = kernel_table(made), kernel_table(made, by="name")
    assert families["total_us"].sum() == names["total_us"].sum() == made.kernels["dur_us"].sum()
    assert families["calls"].sum() == len(made.kernels)
    steps = per_step(made)
    assert len(steps) == 5  # the last one too
    assert steps["kernels"].sum() == (made.kernels["step"] >= 0).sum()


@pytest.mark.parametrize("folder", ["sglang_stages_none", "sglang_mtp"])
def test_real_servers_have_phases(folder):
    made = loaded(CAPTURES / folder)
    steps = per_step(made)
    assert set(steps["phase"]) == ({"prefill", "decode"} if "stages" in folder else {"prefill", "draft", "verify"})
    assert (steps["busy_us"] > 0).all()
    assert (steps["operators"] > 0).all()
