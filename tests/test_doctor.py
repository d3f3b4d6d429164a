"""The doctor tells what is true of this machine, and says no when something that a run needs is gone."""

import shutil

import pytest

from g4lab import cli, doctor, env


def find(check):
    (finding,) = [f for f in doctor.examine() if f.check == check]
    return finding


def test_this_machine_can_run(capsys):
    assert cli.run(["doctor"]) == 0
    shown = capsys.readouterr().out
    for check in ("Python", "GPU", "torch", "Triton", "SGLang", "hook", "sgl_kernel", "compiler", "disk", "weights"):
        assert check in shown


def test_every_hook_target_of_the_installed_sglang_is_found():
    assert find("hook targets").state == "ok", find("hook targets").detail


def test_a_missing_library_stops_a_run(monkeypatch, capsys):
    monkeypatch.setattr(env, "versions", lambda: dict.fromkeys(env.PACKAGES))
    assert cli.run(["doctor"]) == 1
    assert "cannot work here: torch, Triton, transformers, SGLang" in " ".join(capsys.readouterr().out.split())


def test_an_unchecked_sglang_is_said_and_does_not_stop_a_run(monkeypatch):
    older = {**env.versions(), "sglang": "0.5.10"}
    monkeypatch.setattr(env, "versions", lambda: older)
    finding = find("SGLang")
    assert finding.state == "limited"
    assert finding.detail == "0.5.10; the patches were run with 0.5.17 and 0.5.21"


@pytest.mark.parametrize(("printed", "state"), [("10.2.1", "limited"), ("11.1.0", "ok"), ("nonsense", "limited")])
def test_compiler_is_judged_by_its_version(monkeypatch, tmp_path, printed, state):
    if env.has_gpu():
        pytest.skip("an old compiler is fatal on a GPU machine, judged by another rule")
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\necho {printed}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert find("host compiler").state == state


def test_full_disk_stops_a_run(monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert find("disk").state == "missing"


def test_weights_are_found_in_the_hugging_face_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find("Gemma-4 weights").state == "limited"
    snapshot = tmp_path / "models--google--gemma-4-E2B-it" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert find("Gemma-4 weights").detail == "google/gemma-4-E2B-it"
