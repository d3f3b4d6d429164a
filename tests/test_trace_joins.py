"""Kernels joined with launches, operators, CUDA graphs and steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import call, event, kernel, note, op, opened, packed, text

from g4lab.trace import load
from g4lab.trace.nesting import Nesting
from g4lab.trace.steps import parse_step


def read(*events, name="t.trace.json", folder=None):
    if folder is None:
        return load(opened(text(list(events))))
    (folder / name).write_bytes(packed(text(list(events))))
    return load(folder / name)


def test_a_kernel_knows_its_launch_and_the_innermost_operator_around_it():
    trace = read(
        op("aten::linear", 0, 50),
        op("aten::mm", 5, 30),
        call("cudaLaunchKernel", 10, 4, 1),
        kernel("gemm", 20, 8, 1),
        op("aten::other", 12, 1, tid=2),  # another thread is no witness
        call("cudaLaunchKernel", 60, 4, 2),
        kernel("late", 62, 8, 2),
        kernel("never launched here", 80, 8, 99),
        op("aten::empty", 40, 0),
        call("cudaLaunchKernel", 36, 1, 3),  # after aten::mm, still inside aten::linear
        kernel("bias", 90, 1, 3),
    )
    found = trace.kernels.set_index("name")
    assert found["op"].astype(object).where(found["op"].notna(), None).to_dict() == {
        "gemm": "aten::mm",
        "late": None,
        "never launched here": None,
        "bias": "aten::linear",
    }
    assert trace.operators["name"].iloc[found.loc["gemm", "op_id"]] == "aten::mm"
    assert found.loc["gemm", ["launch_ts_us", "launch_dur_us", "queue_us"]].tolist() == [10, 4, 6]
    assert found.loc["late", "queue_us"] == -2  # it ran before the call returned
    assert np.isnan(found.loc["never launched here", "launch_ts_us"])
    self_us = trace.operators.set_index("name")["self_us"].to_dict()
    assert self_us == {"aten::linear": 20, "aten::mm": 30, "aten::other": 1, "aten::empty": 0}


def test_kinds():
    trace = read(
        kernel("gemm", 0, 1, 1),
        kernel("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 1, 1, 2),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 2, 1, device=0, stream=7),
        event("gpu_memset", "Memset (Device)", 3, 1, device=0, stream=7),
        event("gpu_user_annotation", "step[DECODE bs=1]", 0, 4),
    )
    assert trace.kernels["kind"].tolist() == ["compute", "communication", "memory", "memory"]


def test_operators_that_overlap_without_nesting_are_said_and_count_once():
    trace = read(op("a", 0, 10), op("b", 5, 10))
    assert trace.operators["self_us"].tolist() == [5, 10]
    assert "1 operators overlap" in trace.problems[0].what


def graph_trace(*, in_capture=3, nodes=3, node_ids=True):
    """A capture of launches by three operators, then two replays of `nodes` kernels, last node first."""
    events = [call("cudaStreamBeginCapture", 0, 1, 1)]
    for number in range(in_capture):
        events += [op(f"op{number}", 10 + 10 * number, 8), call("cudaLaunchKernel", 12 + 10 * number, 2, 10 + number)]
    events += [call("cudaStreamEndCapture_v10000", 90, 1, 2), op("replay", 99, 300)]
    for replay, correlation in enumerate((50, 51)):
        start = 100 + 100 * replay
        events.append(call("cudaGraphLaunch", start, 5, correlation))
        for number in range(nodes):
            ids = {"graph id": 9, "graph node id": 7_000 + number} if node_ids else {}
            ts = start + 10 + 10 * (nodes - number if node_ids else number)
            events.append(kernel(f"k{number}", ts, 5, correlation, **ids))
    return read(*events, call("cudaLaunchKernel", 450, 2, 60), kernel("alone", 460, 1, 60))


@pytest.mark.parametrize("node_ids", [True, False])
def test_a_graphs_kernels_belong_to_the_operators_that_were_captured(node_ids):
    kernels = graph_trace(node_ids=node_ids).kernels
    replayed = kernels[kernels["graph"] >= 0]
    assert len(replayed) == 6
    assert set(replayed["graph"]) == ({9} if node_ids else {0})
    assert (replayed["op"].astype(str) == replayed["name"].astype(str).str.replace("k", "op")).all()
    alone = kernels[kernels["name"] == "alone"]
    assert alone["graph"].tolist() == [-1]


def test_a_capture_that_does_not_fit_the_graph_names_no_operator():
    kernels = graph_trace(in_capture=2).kernels
    replayed = kernels[kernels["graph"] >= 0]
    assert replayed["op"].isna().all()  # and not the operator around the replaying call either
    assert (replayed["op_id"] == -1).all()
    assert replayed["launch_ts_us"].isin([100, 200]).all()


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("step[EXTEND bs=2 toks=512]", ("prefill", 2, 512)),
        ("step[DECODE bs=8]", ("decode", 8, 8)),
        ("step[DECODE bs=8 g_sq=8 g_sqsq=8 g_sqsk=64 g_sk=64]", ("decode", 8, 8)),
        ("step[VERIFY bs=4]", ("verify", 4, -1)),
        ("step[VERIFY bs=4 g_sq=16 g_sqsq=64 g_sqsk=64 g_sk=64]", ("verify", 4, 16)),
        ("step[DRAFT bs=4]", ("draft", 4, -1)),
        ("step[IDLE bs=0]", ("idle", 0, -1)),
        ("step[MIXED bs=3 c=1 g=2 c_sq=100 c_sk=100 g_sq=2 g_sk=9]", ("prefill", 3, 102)),
        ("step[NEWMODE bs=3]", ("unknown", 3, -1)),
        ("ProfilerStep#12", ("unknown", -1, -1)),
        ("step[DECODE bs=8", None),
        ("scheduler.run_batch", None),
    ],
)
def test_step_names(name, parsed):
    assert parse_step(name) == parsed


def test_work_belongs_to_the_step_that_launched_it():
    trace = read(
        note("ProfilerStep#3", 0, 400),
        note("step[EXTEND bs=1 toks=64]", 10, 90),
        call("cudaLaunchKernel", 50, 2, 1),
        kernel("runs in the next step", 150, 5, 1),
        note("step[DECODE bs=1]", 110, 90),
        call("cudaLaunchKernel", 120, 2, 2, tid=5),  # a launch from another thread
        kernel("decodes", 160, 5, 2),
        call("cudaLaunchKernel", 250, 2, 3),
        kernel("between steps", 260, 5, 3),
        kernel("no launch, in the decode step", 130, 1, 99),
        op("aten::mm", 20, 5),
    )
    assert trace.steps[["phase", "batch", "tokens"]].to_numpy().tolist() == [["prefill", 1, 64], ["decode", 1, 1]]
    assert trace.kernels.set_index("name")["phase"].to_dict() == {
        "runs in the next step": "prefill",
        "decodes": "decode",
        "between steps": "unknown",
        "no launch, in the decode step": "decode",
    }
    assert trace.operators["phase"].tolist() == ["prefill"]
    assert trace.launches["step"].tolist() == [0, 1, -1]


def test_a_draft_step_inside_a_verify_step_is_draft():
    trace = read(
        note("step[VERIFY bs=1]", 0, 100),
        note("step[DRAFT bs=1]", 20, 30),
        op("a", 10, 1),
        op("b", 25, 1),
        op("c", 60, 1),
    )
    assert trace.operators.set_index("name")["phase"].to_dict() == {"a": "verify", "b": "draft", "c": "verify"}


def test_without_named_steps_the_files_name_tells_the_phase(tmp_path):
    events = (note("ProfilerStep#1", 0, 50), op("a", 1, 2), op("b", 60, 2))
    bare = events[1:]
    assert (
        read(*bare, name="9-TP-0-EXTEND.trace.json.gz", folder=tmp_path).operators["phase"].tolist() == ["prefill"] * 2
    )
    assert read(*bare).operators["phase"].tolist() == ["unknown"] * 2
    with_steps = read(*events)
    assert with_steps.operators["step"].tolist() == [0, -1]
    assert with_steps.operators["phase"].tolist() == ["unknown"] * 2


INTERVALS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=25, unique=True
)


@settings(max_examples=200, deadline=None)
@given(INTERVALS, st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3)), min_size=1, max_size=20))
def test_innermost_by_definition(intervals, moments):
    """Against the plain definition, on intervals cut so that they nest as real ones do."""
    nested = []
    for start, dur, thread in sorted(intervals, key=lambda each: (each[2], each[0], -each[1])):
        around = [end for s, end, t in nested if t == thread and s <= start < end]
        nested.append((start, min([start + dur, *around]), thread))
    start, end, thread = (np.array(column, float) for column in zip(*nested, strict=True))
    nesting = Nesting(start, end - start, thread.astype(int))
    at, on = (np.array(column) for column in zip(*moments, strict=True))
    assert nesting.overlaps == 0
    for found, moment, where in zip(nesting.innermost(at.astype(float), on), at, on, strict=True):
        around = [i for i in range(len(nested)) if thread[i] == where and start[i] <= moment <= end[i]]
        if found < 0:
            assert not [i for i in around if moment < end[i]]
        else:
            assert found in around
            assert not [i for i in around if start[found] < start[i] and end[i] < end[found] and moment < end[i]]
    assert (nesting.inside_us <= end - start + 1e-9).all()
