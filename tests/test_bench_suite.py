"""The command's steps around a suite, with made-up proofs and times: what is recorded, shown and raised."""

from types import SimpleNamespace

import pandas as pd
import pytest

from g4lab import records
from g4lab.bench import timing
from g4lab.bench.suite import Proof
from g4lab.commands import _suite
from g4lab.errors import G4LabError


def suite(failing: int):
    proofs = [Proof({"case": i, "dtype": "bfloat16"}, {"unequal": int(i < failing)}, i >= failing) for i in range(8)]
    times = pd.DataFrame(
        [
            {"tokens": 4, "provider": "g4lab", "reading": "cold", "reason": "", "p50_us": 3.5, "hidden_size": None},
            {"tokens": 4, "provider": "SGLang", "reading": "cold", "reason": "not installed", "p50_us": None},
        ]
    )
    return SimpleNamespace(
        KEYS=["tokens", "hidden_size", "absent", "provider", "reading"],
        prove=lambda progress, rows: progress(8, 8) or proofs,
        measure=lambda progress, rounds: progress(1, 1) or times,
    )


@pytest.fixture(autouse=True)
def as_if_on_a_gpu(monkeypatch):
    monkeypatch.setattr(timing, "require_gpu", lambda: None)
    monkeypatch.setattr(timing, "clocks", lambda: {"sm_mhz": 1980.0})


def test_proofs_and_times_become_records(tmp_path):
    shown = []
    _suite.run("made", suite(0), tmp_path, {"rows": 1}, {"rounds": 10}, shown.append)
    bits, latency = (records.read(tmp_path / f"made.{what}.jsonl").records for what in ("bits", "latency"))
    assert [record.parameters["case"] for record in bits] == list(range(8))
    assert latency[0].parameters == {"tokens": 4, "hidden_size": None, "provider": "g4lab", "reading": "cold"}
    assert latency[0].values["p50_us"] == 3.5
    assert latency[0].values["clocks_after"] == {"sm_mhz": 1980.0}
    assert latency[1].values["p50_us"] is None
    assert latency[1].values["reason"] == "not installed"
    assert len(shown) == 1
    assert len({(record.id, record.commit) for record in bits}) == 8


def test_what_does_not_hold_is_raised_after_everything_is_kept_and_shown(tmp_path):
    shown = []
    with pytest.raises(G4LabError) as error:
        _suite.run("made", suite(7), tmp_path, {"rows": 1}, {"rounds": 10}, shown.append)
    assert str(error.value).startswith("not bit-identical: case=0 dtype=bfloat16; case=1")
    assert str(error.value).endswith("and 2 more")
    assert len(shown) == 1
    assert len(records.read(tmp_path).records) == 10
