"""Two traces compared: by hand, and the real server with and without the router patch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import CAPTURES, loaded, trace

from g4lab.errors import BadInput
from g4lab.trace import diff

STEP = {"name": ["step[DECODE bs=1]"], "phase": ["decode"], "ts_us": [0.0], "dur_us": [100.0], "capture": [0]}


def decode(times: dict[str, list[float]], steps=1):
    """A trace of decode steps with these kernels, one after the other."""
    names = [name for name, each in times.items() for _ in each]
    durations = [time for each in times.values() for time in each]
    starts = [sum(durations[:place]) for place in range(len(durations))]
    count = len(names)
    kernels = {"name": names, "ts_us": starts, "dur_us": durations, "phase": ["decode"] * count, "step": [0] * count}
    return trace(kernels if count else None, steps={key: value * steps for key, value in STEP.items()})


EAGER = {"gatherTopK": [6.0], "bitonicSortKVInPlace": [3.0], "fused_moe_kernel": [50.0, 50.0], "_fwd_kernel": [9.0]}
FUSED = {"_route_kernel": [2.0], "fused_moe_kernel": [49.0, 49.0], "_fwd_kernel_0d1d": [4.0]}


def test_new_and_gone_come_first_then_the_largest_change():
    table = diff(decode(EAGER), decode(FUSED), phase="decode")
    rows = list(zip(table["name"], table["status"], table["change_per_step_us"], strict=True))
    assert rows == [
        ("_route_kernel", "new", 2),
        ("gatherTopK", "gone", -6),
        ("bitonicSortKVInPlace", "gone", -3),
        ("_fwd_kernel", "common", -5),  # with and without Triton's suffix
        ("fused_moe_kernel", "common", -2),
    ]
    assert table.loc[table["family"] == "routing", "status"].tolist() == ["new", "gone", "gone"]
    moe = table.set_index("name").loc["fused_moe_kernel"]
    assert moe[["calls_a", "calls_b", "total_us_a", "total_us_b"]].tolist() == [2, 2, 100, 98]
    assert table["share_a"].sum() == pytest.approx(1)
    assert table["share_b"].sum() == pytest.approx(1)


def test_steps_decide_where_the_traces_are_of_different_length():
    table = diff(decode({"k": [10.0]}), decode({"k": [15.0, 15.0, 15.0]}, steps=3))
    assert table.loc[0, ["change_us", "change_per_step_us"]].tolist() == [35, 5]


def test_without_steps_the_totals_decide():
    a, b = (trace({"name": ["x", "y"], "ts_us": [0.0, 9.0], "dur_us": [1.0, dur]}) for dur in (1.0, 4.0))
    table = diff(a, b)
    assert table["name"].tolist() == ["y", "x"]
    assert table["change_us"].tolist() == [3, 0]
    assert table["change_per_step_us"].isna().all()
    assert table["per_step_us_a"].isna().all()


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.floats(0.1, 1e6), min_size=1, max_size=3), min_size=1))
def test_a_trace_does_not_differ_from_itself(times):
    table = diff(decode(times), decode(times))
    assert (table["status"] == "common").all()
    assert (table["change_us"] == 0).all()


@settings(deadline=None, max_examples=20)
@given(*[st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.floats(0.1, 1e6), min_size=1), min_size=1)] * 2)
def test_swapping_the_traces_turns_every_change_round(left, right):
    forth, back = diff(decode(left), decode(right)), diff(decode(right), decode(left))
    forth, back = (table.set_index("name").sort_index() for table in (forth, back))
    assert (forth["change_us"] == -back["change_us"]).all()
    assert (forth["status"] == back["status"].replace({"new": "gone", "gone": "new"})).all()


def test_a_gpu_trace_against_a_cpu_trace():
    cpu = trace(operators={"name": ["aten::mm"], "ts_us": [0.0], "dur_us": [1.0]}, source="cpu.json")
    with pytest.raises(BadInput, match=r"of: got None, expected 'operators', for cpu.json has no GPU activity"):
        diff(decode(EAGER), cpu)


def test_the_router_patch_on_a_real_server_takes_eager_routing_away():
    without, patched = (loaded(CAPTURES / f"sglang_stages_{name}") for name in ("none", "router"))
    for phase in ("prefill", "decode"):
        table = diff(without, patched, phase=phase).set_index("name")
        gone = table[table["status"] == "gone"]
        assert {"aten::topk", "aten::_softmax"} <= set(gone.index)
        assert gone.loc["aten::topk", "family"] == "routing"
        assert gone.loc["aten::topk", "calls_a"] == 12  # 6 layers, 2 steps
        assert table.loc["aten::mm", "status"] == "common"
