"""Real captures of the tiny twin with torch.profiler: the right phase, nothing else, and what made them."""

import json

import pytest

from g4lab import cli, patches
from g4lab.errors import BadInput
from g4lab.runners import profile_transformers
from g4lab.runners.models import load_model
from g4lab.trace import coverage, diff, load


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-moe", "cpu", "float32")


@pytest.mark.parametrize(("phase", "name"), [("prefill", "step[EXTEND bs=2 toks=16]"), ("decode", "step[DECODE bs=2]")])
def test_a_capture_holds_its_steps_and_says_what_made_it(model, tmp_path, phase, name):
    file = profile_transformers(model, phase, 2, 8, 3, out=tmp_path)
    trace = load(file)
    assert trace.problems == []
    assert trace.steps["name"].tolist() == [name] * 3
    assert set(trace.operators["phase"].astype(str)) - {"unknown"} == {phase}
    assert coverage(trace)["coverage"].min() >= 0.95
    said = json.loads(file.with_name(file.name.replace(".trace.json.gz", ".provenance.json")).read_text())
    assert said["parameters"]["steps"] == 3
    assert said["versions"]["torch"]
    assert [row["tokens"] for row in said["expert_load"]] == [16 if phase == "prefill" else 2] * 6


def test_the_router_patch_is_alive_and_the_diff_names_what_it_removes(model, tmp_path):
    off = load(profile_transformers(model, "decode", 1, 8, 2, "none", out=tmp_path))
    on = load(profile_transformers(model, "decode", 1, 8, 2, "router", out=tmp_path))
    assert patches.alive_in(on, "router").alive
    assert not patches.alive_in(off, "router").alive
    gone = diff(off, on, phase="decode").query("status == 'gone'")["name"].tolist()
    assert "aten::topk" in gone


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"phase": "draft"}, "phase"), ({"steps": 0}, "steps"), ({"batch": -1}, "batch"), ({"patches": "all"}, "patches")],
)
def test_bad_input_is_named_before_anything_runs(model, tmp_path, wrong, says):
    with pytest.raises(BadInput, match=says):
        profile_transformers(model, **wrong, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model():
    with pytest.raises(BadInput, match="model"):
        load_model("no-such-model")


def test_the_command_prints_the_families_and_where_the_trace_is(tmp_path, capsys):
    options = ["--phase", "prefill", "--batch", "2", "--prompt-len", "8", "--steps", "1", "--patches", "router"]
    assert cli.run(["profile", *options, "--device", "cpu", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "no kernel performance" in shown
    assert shown.count("live · ") == 2  # both tables: families and coverage
    assert "recorded · " not in shown
    assert str(tmp_path / "tiny-moe-prefill-bs2-len8-router.trace.json.gz") in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--runner", "vllm"], "--runner"), (["--", "--x"], "SGLANG ARGS"), (["--phase", "p"], "phase")],
)
def test_the_command_names_what_is_wrong(options, says, capsys):
    assert cli.run(["profile", *options]) == 2
    assert says in capsys.readouterr().err
