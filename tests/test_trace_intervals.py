"""Unions of intervals against counting microseconds one by one, and the totals of real traces to the last digit."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import loaded, trace

from g4lab.errors import BadInput
from g4lab.trace import breakdown
from g4lab.trace.intervals import COLUMNS, exposed_us, launch_gaps, union_us

INTERVAL = st.tuples(st.integers(0, 60), st.integers(-5, 25), st.integers(0, 2))  # start, duration, group


@settings(deadline=None)
@given(st.lists(INTERVAL, max_size=40))
def test_unions_and_gaps_are_those_of_counting_every_microsecond(intervals):
    start, dur, group = (np.array(column, dtype) for column, dtype in zip(_columns(intervals), "ddi", strict=True))
    adds, gap = exposed_us(start, dur, group)
    for each in set(group.tolist()):
        mine = group == each
        busy = {t for s, d in zip(start[mine], dur[mine], strict=True) for t in range(int(s), int(s + max(d, 0)))}
        assert adds[mine].sum() == len(busy)
        span = (start[mine] + np.maximum(dur[mine], 0)).max() - start[mine].min()
        assert gap[mine].sum() == span - len(busy)  # what is not covered lies in gaps, and in nothing else


def _columns(intervals):
    return zip(*intervals, strict=True) if intervals else ((), (), ())


@settings(deadline=None, max_examples=40)
@given(st.lists(INTERVAL, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_a_union_does_not_depend_on_the_order_of_events(intervals, random):
    shuffled = random.sample(intervals, len(intervals))
    unions = [
        union_us(pd.DataFrame(rows, columns=["ts_us", "dur_us", "g"]).astype({"ts_us": float, "dur_us": float}), ["g"])
        for rows in (intervals, shuffled)
    ]
    pd.testing.assert_series_equal(*unions)


# Of the traces' README; HTA's own figure for the first file.
EXPECTED = {
    "v100_training_hta.json.gz": {"span": 1_732_965, "compute": 620_516, "idle": 732_352},
    "v100_resnet50_kineto_2021.json.gz": {"span": 996_477, "compute": 591_532, "idle": 392_919},
}


@pytest.mark.parametrize("file", EXPECTED)
def test_breakdown_of_real_traces_to_the_microsecond(shared_traces, file):
    result = breakdown(loaded(shared_traces / file))
    assert list(result.columns) == list(COLUMNS)
    assert result.index.name == "device"
    (row,) = result.to_dict("records")
    assert {key: row[key] for key in EXPECTED[file]} == EXPECTED[file]
    assert row["busy"] == row["span"] - row["idle"]
    assert max(row["compute"], row["communication"], row["memory"]) <= row["busy"]


KERNELS = {
    "name": ["gemm", "ncclDevKernel_AllReduce_Sum", "Memcpy HtoD", "gemm", "gemm"],
    "kind": ["compute", "communication", "memory", "compute", "compute"],
    "ts_us": [100.0, 105.0, 130.0, 200.0, 1000.0],
    "dur_us": [10.0, 10.0, 5.0, 0.0, 7.0],
    "device": [0, 0, 0, 0, 0],
    "capture": [0, 0, 0, 0, 1],
}


def test_captures_of_one_device_add_up_and_the_time_between_them_is_not_idle():
    captures = {"file": ["EXTEND", "DECODE"], "rank": [0, 0], "stage": ["EXTEND", "DECODE"], "events": [4, 1]}
    result = breakdown(trace(KERNELS, captures=captures))
    expected = {"span": 107, "busy": 27, "compute": 17, "communication": 10, "memory": 5, "idle": 80}
    assert result.loc[0].to_dict() == expected


def test_ranks_with_the_same_device_number_stay_apart():
    captures = {"file": ["TP-0", "TP-1"], "rank": [0, 1], "stage": ["", ""], "events": [4, 1]}
    result = breakdown(trace(KERNELS, captures=captures))
    assert result.index.names == ["rank", "device"]
    assert result["busy"].to_dict() == {(0, 0): 20, (1, 0): 7}
    assert result.loc[(1, 0), "communication"] == 0


def test_without_a_gpu_the_row_is_the_cpu_and_says_so():
    operators = {"name": ["aten::mm", "aten::mm"], "ts_us": [0.0, 50.0], "dur_us": [10.0, 10.0], "pid": [1, 1]}
    result = breakdown(trace(operators=operators))
    assert result.index.tolist() == ["CPU"]
    assert result.loc["CPU", ["span", "busy", "idle"]].tolist() == [60, 20, 40]
    assert result.loc["CPU", "compute"] != result.loc["CPU", "compute"]
    assert "No GPU activity" in result.title


def test_an_empty_trace_has_no_device():
    assert breakdown(trace()).empty
    assert launch_gaps(trace()).empty


def test_durations_without_a_timeline_have_no_span():
    result = breakdown(trace({"name": ["gemm"], "ts_us": [float("nan")], "dur_us": [3.0]}))
    assert result.isna().all(axis=None)
    assert "no timeline" in result.title
    result.plot()


def test_gaps_are_all_of_the_idle_time_longest_first():
    kernels = KERNELS | {"phase": ["prefill"] * 3 + ["decode"] * 2, "op": [None, None, None, "aten::mm", None]}
    captures = {"file": ["a", "b"], "rank": [0, 0], "stage": ["", ""], "events": [4, 1]}
    made = trace(kernels, captures=captures)
    result = launch_gaps(made)
    assert result["gap_us"].tolist() == [65, 15]
    assert result["before"].tolist() == ["gemm", "Memcpy HtoD"]
    assert result["op"].tolist()[0] == "aten::mm"
    assert result["gap_us"].sum() == breakdown(made)["idle"].sum()
    assert launch_gaps(made, "prefill")["gap_us"].tolist() == [15]  # the kernels before it still count as work


def test_gaps_of_a_phase_the_trace_does_not_have():
    with pytest.raises(BadInput, match=r"phase: got 'verify', expected a phase of this trace: unknown"):
        launch_gaps(trace(KERNELS | {"capture": [0] * 5}), "verify")
    with pytest.raises(BadInput, match=r"phase: got 'prefil', expected one of prefill, decode"):
        launch_gaps(trace(KERNELS | {"capture": [0] * 5}), "prefil")
