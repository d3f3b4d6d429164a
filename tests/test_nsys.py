"""Nsight Systems exports, made by hand in the published schema: what is read, what is repaired, what is refused."""

import sqlite3

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from g4lab.errors import BadInput, G4LabError
from g4lab.trace.nsys import read_nsys, sniff

PID, OTHER = 4321, 4400
STRINGS = [
    (1, "void gemm<float>(float*)"),
    (2, "gemm"),
    (3, "cudaLaunchKernel_v7000"),
    (4, "cudaGraphLaunch_v10000"),
    (5, "cudaDeviceSynchronize_v3020"),
    (6, "step[DECODE bs=8]"),
    (7, "topkGatingSoftmax"),
]
COLUMNS = {  # as of 2024: SQLite Schema Reference
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId "
    "INTEGER, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, "
    "demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, gridX INTEGER, graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, bytes INTEGER, copyKind INTEGER, srcKind INTEGER, dstKind INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, value INTEGER, bytes INTEGER, memKind INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER, globalTid "
    "INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER, graphId "
    "INTEGER, graphExecId INTEGER, contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER",
    "NVTX_EVENTS": "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, text TEXT, globalTid INTEGER, "
    "textId INTEGER, domainId INTEGER",
    "TARGET_INFO_GPU": "id INTEGER, name TEXT",
    "TARGET_INFO_CUDA_DEVICE": "gpuId INTEGER, cudaId INTEGER, pid INTEGER",
    "ENUM_CUDA_MEMCPY_OPER": "id INTEGER, name TEXT, label TEXT",
    "ENUM_CUDA_MEM_KIND": "id INTEGER, name TEXT, label TEXT",
    "META_DATA_EXPORT": "name TEXT, value TEXT",
}


def serial(pid, tid=0):
    """A serialized id: flags above 24 bits of process above 24 bits of thread."""
    return 1 << 48 | pid << 24 | tid


def export(path, tables, columns=COLUMNS):
    """Write an export with these tables: {name: rows as dicts}; StringIds comes by itself."""
    connection = sqlite3.connect(path)
    strings = [{"id": key, "value": value} for key, value in STRINGS]
    for table, rows in ({"StringIds": strings} | tables).items():
        connection.execute(f"CREATE TABLE {table} ({columns[table]})")
        for row in rows:
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
    connection.commit()
    connection.close()
    return path


def kernel(start, end, correlation=None, pid=PID, **more):
    row = {"start": start, "end": end, "deviceId": 0, "streamId": 7, "correlationId": correlation}
    return row | {"globalPid": serial(pid), "demangledName": 1, "shortName": 2} | more


def call(start, end, correlation, name=3, pid=PID, tid=99):
    row = {"start": start, "end": end, "globalTid": serial(pid, tid), "correlationId": correlation}
    return row | {"nameId": name}


def nvtx(start, end, text=None, text_id=None, kind=59, pid=PID, tid=99):
    row = {"start": start, "end": end, "eventType": kind, "text": text, "textId": text_id}
    return row | {"globalTid": serial(pid, tid)}


@pytest.fixture
def whole(tmp_path):
    """One process, a decode step and an unnamed rest: a kernel, a copy, a fill, two nodes of one graph replay."""
    return export(
        tmp_path / "report.sqlite",
        {
            "CUPTI_ACTIVITY_KIND_KERNEL": [
                kernel(2_000_001, 2_001_234, 11),
                kernel(2_010_000, 2_011_000, 12, graphNodeId=5 << 32 | 1, demangledName=7),
                kernel(2_011_500, 2_012_000, 12, graphNodeId=5 << 32 | 2),
                kernel(9_000_000, 9_000_500, 13),
            ],
            "CUPTI_ACTIVITY_KIND_MEMCPY": [
                {"start": 100, "end": 1_124, "deviceId": 0, "streamId": 8, "correlationId": 9, "globalPid": serial(PID)}
                | {"bytes": 4096, "copyKind": 1, "srcKind": 1, "dstKind": 2}
            ],
            "CUPTI_ACTIVITY_KIND_MEMSET": [
                {"start": 50, "end": 60, "deviceId": 0, "streamId": 8, "globalPid": serial(PID), "memKind": 2}
            ],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [
                call(1_990_000, 1_995_000, 11),
                call(2_002_000, 2_004_000, 12, name=4),
                call(8_999_000, 8_999_900, 13),
                call(9_001_000, 9_002_000, 14, name=5),
            ],
            "NVTX_EVENTS": [
                nvtx(1_980_000, 2_020_000, text_id=6),
                nvtx(1_985_000, 1_996_000, text="layer 0", tid=99),
                nvtx(5, None, text="a mark", kind=34),
                nvtx(7, None, text="a domain", kind=75),
            ],
            "TARGET_INFO_GPU": [{"id": 0, "name": "NVIDIA H200"}],
            "TARGET_INFO_CUDA_DEVICE": [{"gpuId": 0, "cudaId": 0, "pid": PID}],
            "ENUM_CUDA_MEMCPY_OPER": [{"id": 1, "name": "CUDA_MEMCPY_KIND_HTOD", "label": "Host-to-Device"}],
            "ENUM_CUDA_MEM_KIND": [
                {"id": 1, "name": "CUDA_MEMOPR_MEMORY_KIND_PINNED", "label": "Pinned"},
                {"id": 2, "name": "CUDA_MEMOPR_MEMORY_KIND_DEVICE", "label": "Device"},
            ],
            "META_DATA_EXPORT": [{"name": "EXPORT_PRODUCT_VERSION", "value": "2024.6.2.225"}],
        },
    )


def test_kernels_copies_and_fills_with_their_launches(whole):
    trace = read_nsys(whole)
    assert (trace.format, trace.problems) == ("nsys", [])
    kernels = trace.kernels
    assert kernels["name"].tolist() == [
        "Memset (Device)",
        "Memcpy HtoD (Pinned -> Device)",
        "void gemm<float>(float*)",
        "topkGatingSoftmax",
        "void gemm<float>(float*)",
        "void gemm<float>(float*)",
    ]
    assert kernels["kind"].tolist() == ["memory"] * 2 + ["compute"] * 4
    assert kernels["family"].tolist() == ["copy", "copy", "dense GEMM", "routing", "dense GEMM", "dense GEMM"]
    assert kernels["ts_us"].tolist() == [0.05, 0.1, 2000.001, 2010.0, 2011.5, 9000.0]
    assert kernels["dur_us"].tolist() == [0.01, 1.024, 1.233, 1.0, 0.5, 0.5]  # whole nanoseconds, not rounded
    assert kernels["launch_ts_us"].tolist()[2:] == [1990.0, 2002.0, 2002.0, 8999.0]
    assert np.isnan(kernels["launch_ts_us"][:2]).all()
    assert kernels["queue_us"].tolist()[2:] == pytest.approx([5.001, 6.0, 7.5, 0.1])
    assert kernels["graph"].tolist() == [-1, -1, -1, 5, 5, -1]
    assert kernels["stream"].tolist() == [8, 8, 7, 7, 7, 7]
    assert trace.launches["name"].tolist()[:2] == ["cudaLaunchKernel", "cudaGraphLaunch"]
    assert trace.meta == {"producer": "Nsight Systems 2024.6.2.225", "devices": {0: "NVIDIA H200"}}
    assert trace.captures.to_dict("records") == [{"file": "report.sqlite", "rank": 0, "stage": "", "events": 12}]


def test_ranges_become_annotations_and_steps(whole):
    trace = read_nsys(whole)
    assert trace.annotations["name"].tolist() == ["step[DECODE bs=8]", "layer 0"]
    assert trace.steps[["name", "phase", "batch"]].values.tolist() == [["step[DECODE bs=8]", "decode", 8]]
    assert trace.kernels["phase"].tolist() == ["unknown"] * 2 + ["decode"] * 3 + ["unknown"]
    assert trace.kernels["step"].tolist() == [-1, -1, 0, 0, 0, -1]
    assert trace.launches[["pid", "tid"]].drop_duplicates().values.tolist() == [[PID, 99]]


def test_precision_late_in_a_long_session(tmp_path):
    start = 86_400_000_000_123  # a day in
    path = export(tmp_path / "x.sqlite", {"CUPTI_ACTIVITY_KIND_KERNEL": [kernel(start, start + 1)]})
    kernels = read_nsys(path).kernels
    assert kernels["dur_us"].tolist() == [0.001]
    assert kernels["ts_us"].tolist() == [start / 1000]


def test_two_processes_are_two_captures_and_keep_their_correlation_ids_apart(tmp_path):
    path = export(
        tmp_path / "tp2.sqlite",
        {
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(200, 300, 1), kernel(250, 350, 1, pid=OTHER)],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [call(100, 110, 1), call(120, 140, 1, pid=OTHER)],
            "NVTX_EVENTS": [
                nvtx(90, 150, text="step[EXTEND bs=1 toks=64]"),
                nvtx(115, 180, text="step[DECODE bs=2]", pid=OTHER),
            ],
            "TARGET_INFO_CUDA_DEVICE": [
                {"gpuId": 4, "cudaId": 0, "pid": PID},
                {"gpuId": 6, "cudaId": 0, "pid": OTHER},
            ],
        },
    )
    trace = read_nsys(path)
    columns = ["capture", "device", "launch_ts_us", "phase"]
    assert trace.kernels[columns].values.tolist() == [[0, 4, 0.1, "prefill"], [1, 6, 0.12, "decode"]]
    assert trace.captures["file"].tolist() == [f"tp2.sqlite, process {pid}" for pid in (PID, OTHER)]


OLD = {  # 2019: no graphs, no process on the GPU's side, no registered strings
    "StringIds": "id INTEGER PRIMARY KEY, value TEXT NOT NULL",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL, contextId INT NOT "
    "NULL, streamId INT NOT NULL, correlationId INT NOT NULL, shortName INT NOT NULL",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INT NOT NULL, end INT NOT NULL, deviceId INT, streamId INT, correlationId "
    "INT, bytes INT, copyKind INT",
    "CUPTI_ACTIVITY_KIND_RUNTIME": COLUMNS["CUPTI_ACTIVITY_KIND_RUNTIME"],
    "NVTX_EVENTS": "start INT NOT NULL, end INT, text TEXT, globalTid INT",
}


def test_an_old_export_finds_the_process_by_the_call(tmp_path):
    activity = {"start": 200, "end": 300, "deviceId": 0, "contextId": 1, "streamId": 7}
    path = export(
        tmp_path / "old.sqlite",
        {
            "CUPTI_ACTIVITY_KIND_KERNEL": [activity | {"correlationId": id_, "shortName": 2} for id_ in (1, 2, 3)],
            "CUPTI_ACTIVITY_KIND_MEMCPY": [
                {"start": 400, "end": 500, "deviceId": 0, "streamId": 7, "correlationId": 5, "copyKind": 8}
            ],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [call(100, 110, 1), call(100, 110, 2, pid=OTHER)]
            + [call(130, 140, 3, pid=pid) for pid in (PID, OTHER)],  # 3 could be of either
            "NVTX_EVENTS": [{"start": 50, "end": 160, "text": "step[DECODE bs=1]", "globalTid": serial(PID, 1)}],
        },
        OLD,
    )
    trace = read_nsys(path)
    where = trace.captures["file"].iloc[trace.kernels["capture"]].tolist()
    launched = trace.kernels["launch_ts_us"].notna().tolist()
    seen = dict(zip(trace.kernels["correlation"], zip(where, launched, strict=True), strict=True))
    nowhere = ("old.sqlite, process unknown", False)
    assert seen == {
        1: (f"old.sqlite, process {PID}", True),
        2: (f"old.sqlite, process {OTHER}", True),
        3: nowhere,
        5: nowhere,
    }
    assert sorted(trace.kernels["name"]) == ["Memcpy DtoD"] + ["gemm"] * 3
    assert trace.kernels["phase"].tolist().count("decode") == 1


def test_a_graph_traced_whole_is_one_row_and_a_problem(tmp_path):
    graph = {"start": 300, "end": 900, "deviceId": 0, "graphId": 3, "graphExecId": 4, "streamId": 7}
    path = export(
        tmp_path / "graph.sqlite",
        {
            "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [graph | {"correlationId": 2, "globalPid": serial(PID)}],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [call(100, 200, 2, name=4)],
        },
    )
    trace = read_nsys(path)
    assert trace.kernels[["name", "graph", "dur_us", "queue_us"]].values.tolist() == [
        ["CUDA graph replay", 3, 0.6, pytest.approx(0.1)]
    ]
    (problem,) = trace.problems
    assert "--cuda-graph-trace=node" in problem.what


def test_rows_that_have_no_place_in_time_are_counted(tmp_path):
    rows = [kernel(0, 0), kernel(500, 400), kernel(10, 20), kernel("soon", 30)]
    path = export(tmp_path / "x.sqlite", {"CUPTI_ACTIVITY_KIND_KERNEL": rows})
    trace = read_nsys(path)
    assert trace.kernels["ts_us"].tolist() == [0.01]
    assert trace.lost == 3
    assert "CUPTI_ACTIVITY_KIND_KERNEL" in trace.problems[0].what


def test_calls_without_kernels_load_as_a_trace_without_gpu_activity(tmp_path):
    path = export(tmp_path / "x.sqlite", {"CUPTI_ACTIVITY_KIND_RUNTIME": [call(1, 2, 3)]})
    trace = read_nsys(path)
    assert not trace.has_gpu
    assert len(trace.launches) == 1


def test_the_export_stays_as_it_is(whole):
    before, folder = whole.read_bytes(), sorted(whole.parent.iterdir())
    read_nsys(whole)
    assert whole.read_bytes() == before
    assert sorted(whole.parent.iterdir()) == folder


def test_refusals_say_what_to_do(tmp_path):
    def refused(name, content, match):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(BadInput, match=match):
            read_nsys(path)

    refused("a.nsys-rep", b"whatever", r"run `nsys export --type sqlite a\.nsys-rep`")
    refused("empty.sqlite", b"", "this one is empty")
    refused("trace.json", b'{"traceEvents": []}', "another kind of file")
    refused("cut.sqlite", b"SQLite format 3\0" + bytes(50), "reading it failed")
    with pytest.raises(BadInput, match="an existing file"):
        read_nsys(tmp_path / "absent.sqlite")
    path = export(tmp_path / "cpu.sqlite", {"NVTX_EVENTS": [nvtx(1, 2, "x")]})
    with pytest.raises(BadInput, match="--trace=cuda,nvtx"):
        read_nsys(path)


def test_a_damaged_schema_is_refused(whole):
    whole.write_bytes(whole.read_bytes().replace(b"CREATE TABLE NVTX_EVENTS", b"CREATE TAB\xf4E NVTX_EVENTS"))
    with pytest.raises(BadInput, match="reading it failed"):
        read_nsys(whole)


def test_a_table_of_another_making_is_refused(tmp_path):
    columns = COLUMNS | {"CUPTI_ACTIVITY_KIND_KERNEL": "begin INTEGER"}
    path = export(tmp_path / "x.sqlite", {"CUPTI_ACTIVITY_KIND_KERNEL": [{"begin": 1}]}, columns)
    with pytest.raises(BadInput, match="the columns start and end"):
        read_nsys(path)


def test_sniff():
    assert sniff(b"SQLite format 3\0and more")
    assert not sniff(b"SQLite format 2\0")
    assert not sniff(b"")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_a_clear_error_or_a_trace(whole, data):
    content = bytearray(whole.read_bytes())
    content = content[: data.draw(st.integers(16, len(content)))]
    for _ in range(data.draw(st.integers(0, 20))):
        content[data.draw(st.integers(16, len(content) - 1)) if len(content) > 16 else 0] = data.draw(
            st.integers(0, 255)
        )
    damaged = whole.parent / "damaged.sqlite"
    damaged.write_bytes(content)
    try:
        trace = read_nsys(damaged)
    except G4LabError:
        return
    assert trace.kernels["dur_us"].ge(0).all()
