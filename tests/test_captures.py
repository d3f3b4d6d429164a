"""Captures on disk: read only when whole, without the names of the machine, with what made them."""

import gzip
import json

import pytest

from g4lab.errors import BadInput
from g4lab.runners import captures

TRACE = b'{"traceEvents": [{"name": "traceName"}], "host_name": "box", "traceName": "tmpabc.json"}'


def test_a_file_without_its_end_is_not_read(tmp_path):
    file = tmp_path / "a.gz"
    whole = gzip.compress(TRACE * 100)
    for length in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert captures.inflate(file) is None, length
    file.write_bytes(whole)
    assert captures.inflate(file) == TRACE * 100
    assert captures.inflate(tmp_path / "absent.gz") is None


def test_a_published_trace_names_no_machine(tmp_path):
    captures.publish(TRACE, tmp_path / "b.trace.json.gz")
    said = json.loads(gzip.decompress((tmp_path / "b.trace.json.gz").read_bytes()))
    assert said == {"traceEvents": [{"name": "traceName"}], "host_name": "", "traceName": ""}
    assert [file.name for file in tmp_path.iterdir()] == ["b.trace.json.gz"]


def test_provenance_names_versions_and_parameters(tmp_path):
    captures.provenance(tmp_path / "p.json", {"phase": "decode"}, expert_load=[])
    said = json.loads((tmp_path / "p.json").read_text())
    assert said["parameters"] == {"phase": "decode"}
    assert {"machine", "versions", "commit", "modified", "captured", "expert_load"} < set(said)


@pytest.mark.parametrize(
    ("phase", "steps", "name"), [("verify", 1, "phase"), ("decode", 0, "steps"), ("decode", 2.0, "steps")]
)
def test_bad_input(phase, steps, name):
    with pytest.raises(BadInput, match=name):
        captures.check(phase, steps=steps)


def test_names():
    assert captures.stem("m", "decode", 8, 128, "router,router_scale") == "m-decode-bs8-len128-router+router_scale"
