"""The command's steps around a suite, with made-up proofs and times: what is recorded, shown and raised."""

from dataclasses import replace
from unittest.mock import create_autospec

import pandas as pd
import pytest
from typer.testing import CliRunner

from g4lab import records
from g4lab.bench import extend, extend_proof, norms, norms_proof, router, timing
from g4lab.bench.suite import Proof, Suite
from g4lab.commands import _suite
from g4lab.commands.bench import app
from g4lab.errors import G4LabError


def suite(failing: int):
    proofs = [Proof({"case": i, "dtype": "bfloat16"}, {"unequal": int(i < failing)}, i >= failing) for i in range(8)]
    times = pd.DataFrame(
        [
            {"tokens": 4, "provider": "g4lab", "reading": "cold", "reason": "", "p50_us": 3.5, "hidden_size": None},
            {"tokens": 4, "provider": "SGLang", "reading": "cold", "reason": "not installed", "p50_us": None},
        ]
    )
    return Suite(
        "made",
        prove=lambda progress: progress(8, 8) or proofs,
        measure=lambda keep, progress: keep(times) or progress(1, 1) or times,
        keys=["tokens", "hidden_size", "absent", "provider", "reading"],
        availability=pd.DataFrame,
    )


@pytest.fixture(autouse=True)
def as_if_on_a_gpu(monkeypatch):
    monkeypatch.setattr(timing, "require_gpu", lambda: None)
    monkeypatch.setattr(timing, "clocks", lambda: {"sm_mhz": 1980.0})


def test_proofs_and_times_become_records(tmp_path):
    shown = []
    _suite.run(suite(0), tmp_path, shown.append)
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
        _suite.run(suite(7), tmp_path, shown.append)
    assert str(error.value).startswith("no bit-equality: case=0 dtype=bfloat16; case=1")
    assert str(error.value).endswith("and 2 more")
    assert len(shown) == 1
    assert len(records.read(tmp_path).records) == 10


def test_a_run_that_breaks_off_leaves_what_it_had(tmp_path):
    def measure(keep, progress):
        keep(pd.DataFrame([{"tokens": 4, "provider": "g4lab", "reading": "cold", "reason": "", "p50_us": 3.5}]))
        raise G4LabError("SGLang broke the CUDA context")

    with pytest.raises(G4LabError, match="broke"):
        _suite.run(replace(suite(0), measure=measure), tmp_path, pytest.fail)
    assert len(records.read(tmp_path / "made.bits.jsonl").records) == 8
    assert [record.values["p50_us"] for record in records.read(tmp_path / "made.latency.jsonl").records] == [3.5]


@pytest.mark.parametrize(
    ("command", "bench", "proof", "options"),
    [
        ("router", router, router, ["--rows", "5"]),
        ("norms", norms, norms_proof, ["--operation", "router_norm", "--tokens", "1"]),
        ("extend", extend, extend_proof, ["--shape", "verify-chat", "--without", extend.FLEX]),
    ],
)
def test_every_command_calls_what_its_suite_has(command, bench, proof, options, tmp_path, monkeypatch):
    """The part of a command that only a GPU reaches: with functions of the real signatures in their places."""
    names = [*bench.KEYS, "reason", "provider", "p50_us"]
    times = pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    monkeypatch.setattr(proof, "prove", create_autospec(proof.prove, return_value=[]))
    monkeypatch.setattr(bench, "measure", create_autospec(bench.measure, return_value=times))
    done = CliRunner().invoke(app, [command, "--records", str(tmp_path), *options, "--rounds", "10"])
    assert done.exception is None, done.exception
    assert proof.prove.call_count == bench.measure.call_count == 1
    assert "records in" in done.output
