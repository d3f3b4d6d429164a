"""Files of every kind and in every state of repair: exact where they are whole, counted where they are not."""

import gzip
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import call, event, kernel, note, op, opened, packed, text

from g4lab.errors import BadInput
from g4lab.trace import chunks, load

EVENTS = [
    note("step[DECODE bs=2]", 0.0, 100.0),
    op("aten::topk", 10.125, 20.5),
    call("cudaLaunchKernel", 12.0, 3.0, 1),
    kernel("gatherTopK", 18.25, 4.125, 1),
    call("cudaLaunchKernel", 32.0, 3.0, 2),
    kernel("fused_moe_kernel", 40.0, 11.001, 2),
]


@pytest.mark.parametrize(
    ("name", "events", "kernels", "operators"),
    [
        ("v100_training_hta", 216_092, 19_370, 56_680),
        ("v100_resnet50_kineto_2021", 75_718, 8_772, 23_640),  # 23,646 operators, 6 of them step marks
        ("mi250_train_hta", 220, 14, 70),
        ("triton_example_hta", 71, 1, 3),
        ("cpu_only_hta", 30, 0, 4),
    ],
)
def test_the_real_files_hold_what_they_hold(shared_traces, name, events, kernels, operators):
    path = shared_traces / f"{name}.json.gz"
    trace = load(path)
    assert trace.problems == []
    assert trace.captures.loc[0, "events"] == events
    assert len(trace.operators) == operators
    everything = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    on_gpu = [e for e in everything if (e.get("cat") or "").lower() == "kernel"]
    computing = trace.kernels[trace.kernels["kind"] != "memory"]
    assert len(computing) == kernels == len(on_gpu)
    assert computing["dur_us"].sum() == pytest.approx(sum(e["dur"] for e in on_gpu), rel=1e-12)
    assert sorted(computing["ts_us"]) == sorted(e["ts"] for e in on_gpu)
    if kernels:  # every launch in these files is there, with the operator that made it
        assert trace.kernels["launch_ts_us"].notna().all()
        assert trace.kernels["op"].notna().all()


def test_times_are_the_files_own():
    trace = load(opened(text(EVENTS, deviceProperties=[{"id": 0, "name": "NVIDIA H200"}])))
    assert trace.kernels["dur_us"].tolist() == [4.125, 11.001]
    assert trace.kernels["ts_us"].tolist() == [18.25, 40.0]
    assert trace.meta["devices"] == {0: "NVIDIA H200"}
    assert trace.meta["traceName"] == "t.json"
    assert repr(trace).startswith("Trace('file object', pytorch, 2 kernels, 1 operators, 1 steps")


@pytest.mark.parametrize(
    "data",
    [
        text(EVENTS),
        packed(text(EVENTS)),
        packed(text(EVENTS)[:300]) + packed(text(EVENTS)[300:]) + b"\0" * 512,
        json.dumps(EVENTS).encode(),
        json.dumps({"traceEvents": EVENTS}, separators=(",", ":")).encode(),
        json.dumps(EVENTS, indent=1).encode()[:-2],  # the array form need not be closed
        json.dumps(EVENTS).encode()[:-1] + b",\n",
        b"\xef\xbb\xbf\n" + text(EVENTS) + b"\n\n",
        json.dumps({"note": 'not "traceEvents": [', "nested": {"traceEvents": [1]}, "traceEvents": EVENTS}).encode(),
    ],
    ids=["plain", "gzip", "gzip in two", "array", "compact", "open array", "trailing comma", "BOM", "decoys before"],
)
def test_every_way_to_write_the_same_trace(data):
    trace = load(opened(data))
    assert trace.problems == []
    assert trace.captures.loc[0, "events"] == len(EVENTS)
    assert trace.kernels["name"].tolist() == ["gatherTopK", "fused_moe_kernel"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (packed(b""), "empty"),
        (b"\x1f\x8b", "empty"),
        (b"PK\x03\x04 a zip", "expected a Chrome trace"),
        (b'{"schemaVersion": 1}', "without a list traceEvents"),
        (b'{"traceEvents": 3}', "without a list traceEvents"),
        (b"{" + b"x" * 5000, "without a list traceEvents"),
        (b'{"traceEvents": []}', "no event"),
        (b'{"traceEvents": [{"ph"', "no event"),
        (b"[1, 2, 3]", "no event"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(data, says):
    with pytest.raises(BadInput, match=says) as refused:
        load(opened(data))
    assert "\n" not in str(refused.value)


def test_paths(tmp_path):
    with pytest.raises(BadInput, match="an existing file or folder"):
        load(tmp_path / "none.json")
    with pytest.raises(BadInput, match="folder with"):
        load(tmp_path)
    with pytest.raises(BadInput, match="binary"):
        load(io.StringIO("{}"))
    for stage, rank in (("EXTEND", 0), ("DECODE", 0), ("EXTEND", 1)):
        bare = [each for each in EVENTS if each["cat"] != "user_annotation"]
        (tmp_path / f"17-TP-{rank}-{stage}.trace.json.gz").write_bytes(packed(text(bare)))
    (tmp_path / "merged-17.trace.json.gz").write_bytes(packed(text(EVENTS)))
    (tmp_path / "provenance.json").write_text("{}")
    trace = load(tmp_path)
    assert trace.captures[["rank", "stage"]].to_numpy().tolist() == [[0, "DECODE"], [0, "EXTEND"], [1, "EXTEND"]]
    assert trace.kernels.groupby("capture", observed=True).size().tolist() == [2, 2, 2]
    assert trace.kernels["phase"].tolist() == ["decode"] * 2 + ["prefill"] * 4


def test_every_cut_of_a_file_keeps_the_events_before_it():
    data = text(EVENTS)
    first = data.index(b'"traceEvents"') + len(b'"traceEvents": [')
    ends = np.cumsum([len(part) for part in data.split(b"\n    }")])  # an event ends at the brace of its level
    ends = [end + 6 * (i + 1) for i, end in enumerate(ends[: len(EVENTS)])]
    assert data[ends[0] - 1 : ends[0]] == b"}"
    for cut in [*range(first, len(data) - 1, 7), *range(ends[-1] - 5, len(data) - 1)]:
        whole = sum(end <= cut for end in ends)
        if not whole:
            with pytest.raises(BadInput):
                load(opened(data[:cut]))
            continue
        trace = load(opened(data[:cut]))
        assert trace.captures.loc[0, "events"] == whole, cut
        inside_an_event = data[ends[whole - 1] : cut].strip(b", \n]")[:1] == b"{"
        assert trace.lost == inside_an_event, cut
        assert any("cut" in problem.what or "no JSON" in problem.what for problem in trace.problems)


def test_every_cut_of_a_gzip_file_says_so():
    data = packed(text(EVENTS * 20))
    for cut in range(20, len(data) - 1, 11):
        try:
            trace = load(opened(data[:cut]))
        except BadInput:
            continue
        assert any("gzip" in problem.what for problem in trace.problems), cut


def test_damage_in_the_middle_costs_only_the_damaged_event():
    good = [json.dumps(each) for each in EVENTS]
    broken = ['{"ph": "X", "name": "cut}', '{"ph": "X", "name": tru}', '{"ph": "X" "name": 1}']
    for wreck in broken:
        data = '{"traceEvents": [' + ", ".join([*good[:3], wreck, *good[3:]]) + '], "traceName": "x"}'
        trace = load(opened(data.encode()))
        assert trace.captures.loc[0, "events"] == len(EVENTS)
        assert len(trace.kernels) == 2
        assert trace.lost == 1
        assert trace.meta["traceName"] == "x"


def test_fields_that_cannot_be_used_are_repaired_or_counted():
    odd = [
        {"ph": "X", "cat": "kernel", "name": "no time"},
        {"ph": "X", "cat": "kernel", "name": "no duration", "ts": 5},
        {"ph": "X", "cat": "kernel", "name": "text time", "ts": "7.5", "dur": "2"},
        {"ph": "X", "cat": "kernel", "name": "args", "ts": 1, "dur": 1, "args": "none"},
        {"ph": "X", "cat": "kernel", "name": "negative", "ts": 30, "dur": -4, "args": {"stream": "stream 9"}},
        kernel("huge", 31, 1, 2**70, stream="0x1f"),
        {"ph": "X", "cat": "kernel", "name": "array", "ts": [1], "dur": 1},
        {"ph": "X", "cat": "kernel", "name": ["list"], "ts": 1, "dur": 1},
    ]
    never = event("kernel", "never", float("nan"), float("inf"))
    body = json.dumps([*EVENTS, *odd, never])
    trace = load(opened(body.encode()))
    found = trace.kernels.set_index("name")
    assert set(found.index) == {"gatherTopK", "fused_moe_kernel", "text time", "args", "negative", "huge"}
    assert found.loc["text time", ["ts_us", "dur_us"]].tolist() == [7.5, 2.0]
    assert found.loc["negative", ["dur_us", "stream"]].tolist() == [0.0, 9]
    assert found.loc["huge", ["correlation", "stream"]].tolist() == [-1, 31]
    assert {(p.what, p.lost) for p in trace.problems} == {
        ("pieces of text that are no event", 2),
        ("events without a start or a duration", 3),
        ("1 negative durations, taken as 0", 0),
    }


def test_bytes_that_are_no_utf8_spoil_only_a_name():
    data = text(EVENTS).replace(b"gatherTopK", b"gather\xff\xfeTopK")
    trace = load(opened(data))
    assert len(trace.kernels) == 2
    assert trace.kernels["dur_us"].tolist() == [4.125, 11.001]


AWKWARD = st.sampled_from(["},{", "}, {", '"]}'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8) | AWKWARD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MADE = st.lists(
    st.builds(
        lambda name, ts, dur, extra: event("kernel", name, ts, dur) | {"args": {"x": extra}},
        st.text(max_size=12) | st.sampled_from(["},{", "a}, {b", "\\", '"', "],"]),
        st.floats(0, 1e15),
        st.floats(0, 1e6),
        VALUES,
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(MADE, st.integers(40, 2000), st.sampled_from([None, 0, 2]), st.booleans())
def test_wherever_chunks_end_the_events_are_the_same(events, size, indent, ascii_only):
    data = json.dumps({"a": 1, "traceEvents": events, "z": [{}, {}]}, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", size)
        patch.setattr("g4lab.trace.inflate.BLOCK", max(16, size // 3))
        trace = load(opened(data.encode("utf-8", "surrogatepass")))
    assert trace.captures.loc[0, "events"] == len(events)
    assert trace.problems == []
    want = sorted((e["ts"], e["dur"]) for e in events)
    assert sorted(zip(trace.kernels["ts_us"], trace.kernels["dur_us"], strict=True)) == want


def test_an_event_of_many_nested_objects_is_never_taken_apart(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 64)
    nested = event("kernel", "nested", 2, 1) | {"args": {"x": [{"y": {}}, {}] * 50}}
    trace = load(opened(text([event("kernel", "before", 0, 1), nested, nested, event("kernel", "after", 5, 1)])))
    assert trace.problems == []
    assert trace.kernels["name"].tolist() == ["before", "nested", "nested", "after"]


def read_or_refuse(data):
    """A trace, or None where the file is refused in one line; any other exception fails the test."""
    try:
        return load(opened(data))
    except BadInput as error:
        if "\n" in str(error):
            raise AssertionError("an error of several lines") from error
        return None


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_no_damage_shows_the_parsers_insides(data, zipped, small):
    whole = text(EVENTS * 3)
    whole = bytearray(packed(whole) if zipped else whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 1))
        size = data.draw(st.integers(0, 20))
        whole[at : at + size] = data.draw(st.binary(max_size=20))
        if not whole:
            break
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(chunks, "CHUNK", 512)
        trace = read_or_refuse(bytes(whole))
    assert trace is None or len(trace.kernels) <= 6 * len(EVENTS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"[", b'{"traceEvents":[', b"\x1f\x8b\x08\x00"]))
def test_random_bytes_are_refused(noise, start):
    trace = read_or_refuse(start + noise)
    assert trace is None or trace.captures.loc[0, "events"] > 0
