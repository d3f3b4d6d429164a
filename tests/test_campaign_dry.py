"""The dry run: every command of the H200's table holds here, and a fault in any of them makes it fail."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from g4lab import campaign, env, records
from g4lab.campaign.state import load_state

pytestmark = pytest.mark.skipif(env.has_gpu(), reason="a dry run is for machines without a GPU")


def dry_run(folder: Path, *options: str, timeout_s: float = 300) -> tuple[int, str]:
    command = [sys.executable, "-m", "g4lab", "campaign", "--dry-run", "--out", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.server
@pytest.mark.timeout(600)
def test_every_step_of_the_h200_campaign(tmp_path):
    """Tiny twins here, one pair of servers among them; what is not run says why."""
    code, said = dry_run(tmp_path / "run", timeout_s=590)
    state = load_state(tmp_path / "run")
    assert code == 0, said
    assert list(state.steps) == [step.name for step in campaign.load_table("h200").steps]
    how = {name: step.state for name, step in state.steps.items()}
    assert set(how.values()) == {"done", "skipped"}
    ran = {name for name, each in how.items() if each == "done"}
    proofs = {name for name in how if name.startswith("proofs-")}
    assert ran >= proofs | {"doctor", "gpu-tests", "expert-load", "profile-decode", "profile-prefill", "serving-all"}
    assert "verdict: " in state.steps["serving-all"].line
    for name, step in state.steps.items():
        if name.startswith("bench-") or name == "ceilings":
            assert step.line.startswith("no kernel time here"), name
        elif step.state == "skipped":
            assert step.line.startswith("its command parses; "), name

    (load,) = records.read(tmp_path / "run/steps/expert-load/1/records/expert_load.jsonl").records
    assert [row["tokens"] for row in load.values["sizes"]] == [1, 8]
    assert all(1 <= row["used"] <= row["experts"] for row in load.values["layers"])
    assert all(row["most_tokens_on_one"] <= row["tokens"] for row in load.values["layers"])
    assert not (tmp_path / "run/records").exists()  # a dry run leaves no results
    assert "Nothing was measured" in (tmp_path / "run/summary.md").read_text()


FAULTS = {  # a real command, and what has to be said about it
    "option": ("g4lab bench router --round 30", "No such option: --round"),
    "value": ("g4lab bench moe --rounds many", "Invalid value for '--rounds'"),
    "command": ("g4lab bench routers", "No such command 'routers'"),
    "patch": ("g4lab ab 26b-a4b --b none,warp_speed", "warp_speed"),
    "scenario": ("g4lab ab 26b-a4b --scenario rush", "scenario: got 'rush'"),
    "model": ("g4lab experts 27b -- --load-format dummy", "model: got '27b'"),
    "notebook": ("g4lab run --profile h9000", "profile: got 'h9000'"),
    "flag": ("g4lab ab 26b-a4b -- --load-formats-dummy", "SGLang: unrecognized arguments: --load-formats-dummy"),
    "side": ('g4lab ab 26b-a4b --args-b "--page-size big"', "SGLang: argument --page-size: invalid int value: 'big'"),
    "module": ("python -m pytests -q", "no module named pytests"),
    "shape": ("g4lab tune extend_attention --shapes verify-chats", "shape: got 'verify-chats'"),
}
TWINS = {  # a twin, and how it has to end
    "fine": ({"command": "g4lab plan 26b-a4b --kv-bytes 40G"}, "done", "holds 80 at once"),
    "no-gpu": ({"stops_with": "no kernel time here"}, "skipped", "no kernel time here"),
    "other-end": ({"stops_with": "no coffee here"}, "failed", "no kernel time here"),
    "typo": (
        {"command": "g4lab bench extend --shape nowhere", "stops_with": "no kernel time here"},
        "failed",
        "nowhere",
    ),
    "crash": ({"command": 'python -c "import os; os.abort()"'}, "failed", "killed by signal 6"),
    "large": ({"seconds": 1000}, "skipped", "its command parses; its twin, 1000 s, does not fit"),
    "none": ({"reason": "for a reason"}, "skipped", "its command parses; for a reason"),
}


@pytest.mark.timeout(300)
def test_a_fault_in_any_command_or_twin_is_found(tmp_path):
    def step(name, command, twin):
        return {"name": name, "stage": "s", "proves": "p", "seconds": 1, "command": command, "twin": twin}

    steps = [step(name, command, {"command": "g4lab --help"}) for name, (command, _) in FAULTS.items()]
    steps += [step(name, "g4lab bench router", twin) for name, (twin, _, _) in TWINS.items()]
    steps[-len(TWINS)]["headline"] = "holds 80"
    table = tmp_path / "table.yaml"
    table.write_text(yaml.safe_dump({"name": "t", "machine": "m", "steps": steps}))
    code, said = dry_run(tmp_path / "run", "--profile", str(table))
    found = load_state(tmp_path / "run").steps
    assert code == 1, said
    for name, (_, reason) in FAULTS.items():
        assert (name, found[name].state) == (name, "failed")
        assert reason in found[name].line
    for name, (_, how, line) in TWINS.items():
        assert (name, found[name].state) == (name, how)
        assert line in found[name].line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "soon"], "--budget: got 'soon'"),
        (["--budget", "0m"], "--budget: got '0m'"),
        (["--only", "warp"], "--only: got 'warp'"),
        (["--profile", "h9000"], "profile: got 'h9000'"),
        (["--resume", "somewhere"], "--resume: got 'somewhere'"),
    ],
)
def test_options_that_cannot_be_used(capsys, tmp_path, options, said):
    from g4lab import cli

    assert cli.run(["campaign", "--dry-run", "--out", str(tmp_path / "run"), *options]) == 2
    assert said in capsys.readouterr().err
