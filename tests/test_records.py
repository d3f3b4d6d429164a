"""Records: what goes in comes out, nothing is lost to concurrent writers, and damage is reported, not fatal."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab import env, records
from g4lab.errors import BadInput

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text(min_size=1, max_size=8).map(lambda text: "k_" + text)


def same(a, b) -> bool:
    return json.dumps(records._tag(a)) == json.dumps(records._tag(b))


@given(values=st.dictionaries(KEYS, JSON, max_size=4))
def test_a_record_survives_its_line(values):
    record = records.new_record("round.trip", values)
    line = records.to_json(record)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    again = records.from_json(line)
    assert same(again.values, record.values)
    assert (again.id, again.time, again.machine) == (record.id, record.time, env.machine())


def test_numpy_and_non_finite_values(tmp_path):
    values = {"us": np.float32(1.5), "n": np.int64(3), "row": np.arange(2), "nan": math.nan, "inf": [-math.inf]}
    path = records.append(records.new_record("x", values), tmp_path / "x.jsonl")
    (record,), problems = records.read(path)
    assert problems == []
    assert record.values["us"] == 1.5
    assert record.values["row"] == [0, 1]
    assert math.isnan(record.values["nan"])
    assert record.values["inf"] == [-math.inf]


def test_what_the_schema_refuses():
    with pytest.raises(BadInput, match=r"values\.f.*expected a number"):
        records.new_record("x", {"f": object()})
    with pytest.raises(BadInput, match="name"):
        records.new_record("Not A Name", {})
    with pytest.raises(BadInput, match="kind"):
        records.new_record("x", {}, kind="guessed")
    with pytest.raises(BadInput, match="two columns of the name tokens"):
        records.new_record("x", {"tokens": 1}, {"tokens": 2})
    with pytest.raises(BadInput, match="two columns of the name machine"):
        records.new_record("x", {"machine": 1})


def test_two_processes_appending_a_thousand_records_each_lose_none(tmp_path):
    path = tmp_path / "shared.jsonl"
    code = (
        "import sys\n"
        "from g4lab import records\n"
        "record = records.new_record('stress', {'text': 'x' * 3000})\n"
        "for i in range(1000):\n"
        "    mark = record.model_copy(update={'id': f'{sys.argv[2]}-{i}'})\n"
        "    records.append(mark, sys.argv[1])\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    found, problems = records.read(path)
    assert problems == []
    assert {record.id for record in found} == {f"{who}-{i}" for who in "ab" for i in range(1000)}
    for who in "ab":  # and each writer's records lie in the order they were written
        assert [r.id for r in found if r.id[0] == who] == [f"{who}-{i}" for i in range(1000)]


def test_damage_is_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "damaged.jsonl"
    first, second = (records.new_record("x", {"i": i}) for i in range(2))
    records.append(first, path)
    whole = path.read_bytes()
    newer = json.loads(whole) | {"schema_version": 2}
    lines = [
        b"\xff\xfe",
        b"[1, 2]",
        json.dumps(newer).encode(),
        b'{"schema_version": 1}',
        b"",
        b'{"v": {"$float": "x"}}',
    ]
    path.write_bytes(whole + b"\n".join(lines) + b"\n" + whole[: len(whole) // 2])  # the last writer was killed
    records.append(second, path)
    found, problems = records.read(path)
    assert found == [first, second]
    assert [problem.line for problem in problems] == [2, 3, 4, 5, 7, 8]
    reasons = [problem.reason for problem in problems]
    assert reasons[:3] == [
        "not UTF-8 text",
        "expected a JSON object, found list",
        "schema_version 2, this g4lab reads 1",
    ]
    assert reasons[-1].startswith("cut or not JSON")
    assert str(problems[-1]).startswith(f"{path}:8: ")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_holds_no_records(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    assert records.read(path) == ([], [])
    assert list(records.to_frame([]).columns)[:3] == ["id", "time", "kind"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.jsonl.*expected a file or folder of records"):
        records.read(tmp_path / "nowhere.jsonl")


def test_default_place_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("G4LAB_RECORDS", str(tmp_path / "r"))
    for name in ("b", "a"):
        assert records.append(records.new_record(name, {"v": 1})) == tmp_path / "r" / f"{name}.jsonl"
    assert [record.name for record in records.read().records] == ["a", "b"]
    monkeypatch.delenv("G4LAB_RECORDS")
    assert records.where() == records.runs_dir() / "records"


def test_a_committed_record_shows_as_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "data_dir", lambda: tmp_path / "data")
    for folder in ("data/records/nvidia-h200", "elsewhere"):
        records.append(records.new_record("x", {"v": 1}), tmp_path / folder / "x.jsonl")
    assert [r.kind for r in records.read(tmp_path / "data").records] == ["recorded"]
    assert [r.kind for r in records.read(tmp_path / "elsewhere").records] == ["live"]


def test_a_frame_has_a_column_for_every_parameter_and_value():
    frame = records.to_frame(
        [records.new_record("x", {"us": 1.0}, {"tokens": 7}), records.new_record("x", {"us": 2.0})]
    )
    assert frame["us"].tolist() == [1.0, 2.0]
    assert frame["tokens"][0] == 7
    assert frame["tokens"].isna().tolist() == [False, True]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = records.append(records.new_record("x", {"i": 0}), tmp_path / "x.jsonl")
    before = path.read_bytes()
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real_write(handle, data[:20]))
    with pytest.raises(records.Unavailable, match="no room"):
        records.append(records.new_record("x", {"i": 1}), path)
    assert path.read_bytes() == before
