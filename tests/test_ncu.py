"""Nsight Compute's CSV, both pages and several versions, made by hand; damage; other files."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from g4lab.errors import BadInput, G4LabError
from g4lab.trace.ncu import read_ncu, sniff

WHO = '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size"'
NEWER = WHO + ',"Device","CC"'
METRIC = ',"Section Name","Metric Name","Metric Unit","Metric Value"'
RULE = ',"Rule Name","Rule Type","Rule Description","Estimated Speedup Type","Estimated Speedup"'
GEMM = '"void gemm<float>(float *, int)"'


def about(number, kernel=GEMM, device=',"0","9.0"'):
    return f'"{number}","42","python3","127.0.0.1",{kernel},"1","7","(128, 1, 1)","(16, 2, 1)"{device}'


def details():
    """The details page of 2024: metric rows, a rule's row, the tool's and the program's lines around them."""
    lines = [
        "==PROF== Connected to process 42 (/usr/bin/python3)",
        'loading weights, "please" wait',
        '==PROF== Profiling "gemm" - 0: 0%....50%....100% - 9 passes',
        NEWER + METRIC + RULE,
    ]
    for number, kernel, micros in ((0, GEMM, "1,211.94"), (1, '"topkGatingSoftmax"', "3.36"), (2, GEMM, "12")):
        section = about(number, kernel) + ',"GPU Speed Of Light Throughput",'
        empty = ',"","","","",""'
        lines += [
            section + '"DRAM Frequency","Ghz","2.61"' + empty,
            section + f'"Duration","us","{micros}"' + empty,
            section + '"Memory Throughput","%","78.5"' + empty,
            about(number, kernel) + ',"SpeedOfLight","","","","SOLBottleneck","OPT","Memory, mostly.","",""',
            about(number, kernel) + ',"Memory Workload Analysis","Memory Throughput","Gbyte/s","3,768.00"' + empty,
            about(number, kernel) + ',"Launch Statistics","Registers Per Thread","register/thread","168"' + empty,
            "step done",
        ]
    return "\n".join([*lines, "==PROF== Disconnected from process 42", ""])


def raw(unit="nsecond", durations=("2,000,000", "3360")):
    """The raw page: metrics are columns, units a row."""
    header = NEWER + ',"dram__bytes_read.sum","gpu__time_duration.sum","launch__registers_per_thread"'
    units = ",".join(['""'] * 11) + f',"Mbyte","{unit}","register/thread"'
    rows = [about(i) + f',"1,024.5","{duration}","{100 + i}"' for i, duration in enumerate(durations)]
    return "\n".join(["==PROF== Connected", header, units, *rows, ""])


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "ncu.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_ncu(path)

    return load


def test_details_page(load):
    trace = load(details())
    kernels = trace.kernels
    assert trace.format == "ncu"
    assert kernels["name"].tolist() == [GEMM.strip('"'), "topkGatingSoftmax", GEMM.strip('"')]
    assert kernels["family"].tolist() == ["dense GEMM", "routing", "dense GEMM"]
    assert kernels["dur_us"].tolist() == [1211.94, 3.36, 12.0]
    assert kernels[["stream", "device", "correlation", "graph"]].values.tolist() == [[7, 0, -1, -1]] * 3
    metrics = trace.meta["metrics"]
    assert metrics["Memory Throughput [%]"].tolist() == [78.5] * 3
    assert metrics["Memory Throughput (Gbyte/s) [Gbyte/s]"].tolist() == [3768.0] * 3
    assert metrics["Registers Per Thread [register/thread]"].tolist() == [168.0] * 3
    assert metrics["Grid Size"].tolist() == ["(16, 2, 1)"] * 3


def test_there_is_no_timeline_and_a_problem_says_so(load):
    trace = load(details())
    assert trace.kernels[["ts_us", "launch_ts_us", "queue_us"]].isna().all().all()
    assert set(trace.kernels["phase"]) == {"unknown"}
    assert "a timeline is not there" in trace.problems[0].what
    assert "3 lines between the rows" in trace.problems[1].what
    assert trace.lost == 0


def test_raw_page_in_order(load):
    trace = load(raw())
    assert trace.kernels["dur_us"].tolist() == [2000.0, 3.36]
    assert trace.meta["metrics"]["dram__bytes_read.sum [Mbyte]"].tolist() == [1024.5] * 2
    assert trace.meta["metrics"]["launch__registers_per_thread [register/thread]"].tolist() == [100.0, 101.0]


@pytest.mark.parametrize(
    ("unit", "micros"),
    [("ns", 0.5), ("nsecond", 0.5), ("us", 500), ("usecond", 500), ("ms", 5e5), ("msecond", 5e5), ("s", 5e8)],
)
def test_units(load, unit, micros):
    assert load(raw(unit, ["500"])).kernels["dur_us"].tolist() == [pytest.approx(micros, rel=1e-15)]


def test_a_minimal_older_table(load):
    """Versions before 2022 have no Device and CC, and some scripts keep only a few columns."""
    older = WHO + METRIC + "\n" + about(0, device="") + ',"Command line profiler metrics",'
    trace = load(older + '"gpu__time_duration.sum","usecond","7.5"\n')
    assert trace.kernels[["dur_us", "device"]].values.tolist() == [[7.5, -1]]
    bare = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n"0","k","gpu__time_duration.sum","ns","9"\n'
    assert load(bare).kernels["dur_us"].tolist() == [0.009]


def test_crlf_and_a_byte_order_mark(load):
    assert load(b"\xef\xbb\xbf" + raw().replace("\n", "\r\n").encode()).kernels["dur_us"].tolist() == [2000.0, 3.36]


def test_a_kernel_without_a_duration_is_counted(load):
    trace = load(raw(durations=["10", "n/a", "", "-5", "20"]))
    assert trace.kernels["dur_us"].tolist() == [0.01, 0.02]
    assert trace.lost == 3
    assert trace.meta["metrics"].shape[0] == 2


def test_a_cut_last_line_is_left_out(load):
    whole = raw(durations=["10", "2000"]).rstrip("\n")
    cut = load(whole[: whole.index('2000"') + 2])  # within the second kernel's duration: not 20 ns
    assert cut.kernels["dur_us"].tolist() == [0.01]
    assert cut.lost == 1
    assert "end early" in cut.problems[-1].what
    assert len(load(whole).kernels) == 2  # a missing newline alone loses nothing


def test_refusals_say_what_to_do(load, tmp_path):
    with pytest.raises(BadInput, match="an existing file"):
        read_ncu(tmp_path / "absent.csv")
    for other in ("", '{"traceEvents": []}', "a,b\n1,2\n", "==PROF== Connected\n==ERROR== no kernels were profiled\n"):
        with pytest.raises(BadInput, match="the columns ID and Kernel Name"):
            load(other)
    with pytest.raises(BadInput, match=r"at least one of 3 kernels: collect one with `--metrics gpu__time_duration"):
        load(details().replace('"Duration"', '"Elapsed Cycles"'))
    with pytest.raises(BadInput, match="of 0 kernels"):
        load(NEWER + METRIC + "\n")
    with pytest.raises(BadInput, match=r"gpu__time_duration\.sum in parsec"):
        load(raw("parsec"))
    with pytest.raises(BadInput, match="decimal point; 211,9 is"):
        load(raw(durations=["211,9"]))


def test_sniff():
    assert sniff(details().encode()[:4096])
    assert sniff(raw().encode())
    assert sniff(b"ID,Process ID,Process Name,Host Name,Kernel Name\n")
    assert not sniff(b'{"traceEvents": [{"name": "Kernel Name"}]}')
    assert not sniff(b"")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_a_clear_error_or_finite_durations(load, data):
    text = data.draw(st.sampled_from([details(), raw()])).encode()
    start, size = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 60))
    text = text[:start] + data.draw(st.binary(max_size=20)) + text[start + size :]
    try:
        trace = load(text[: data.draw(st.integers(0, len(text)))])
    except G4LabError:
        return
    assert all(0 <= dur < math.inf for dur in trace.kernels["dur_us"])
    assert len(trace.meta["metrics"]) == len(trace.kernels)
