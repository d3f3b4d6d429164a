"""Campaigns on steps of a second: within a budget, checkpointed through kills, honest about what is not done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from g4lab import campaign, env, records
from g4lab.campaign import summary
from g4lab.campaign.planner import plan
from g4lab.campaign.runner import attempt_folder
from g4lab.campaign.state import load_state, new_state
from g4lab.campaign.steps import Cost, Step, Table, Twin, costs
from g4lab.errors import BadInput
from g4lab.patches.catalogue import REGISTRY

RECORD = """
import sys, time
from g4lab import records
records.append(records.new_record('figure', {'v': sys.argv[1]}))
print('figure', sys.argv[1], flush=True)
"""


def step(name, command="python -c pass", seconds=5, after=(), **more) -> Step:
    fields = {"stage": "any", "proves": "that it ran", "twin": Twin()} | more
    return Step(name=name, command=command, seconds=seconds, after=after, **fields)


def writes(tmp_path: Path, body: str = "") -> str:
    """A command that appends a record, prints, and then does `body`."""
    script = tmp_path / f"script{len(list(tmp_path.glob('script*')))}.py"
    script.write_text(RECORD + body)
    return f"python {script}"


def go(steps, folder, budget_s=float("inf"), **more):
    state = new_state(Table(name="test", machine="any", steps=tuple(steps)), [each.name for each in steps])
    state.save(folder)
    return campaign.run(state, folder, budget_s, **more)


def states(state) -> dict:
    return {name: each.state for name, each in state.steps.items()}


def figures(folder: Path) -> list:
    found = records.read(folder).records if folder.is_dir() else []
    return [record.values["v"] for record in found if record.name == "figure"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@st.composite
def tables(draw):
    seconds = draw(st.lists(st.floats(0.1, 100), max_size=12))
    made = []
    for number, cost in enumerate(seconds):
        before = draw(st.lists(st.sampled_from([s.name for s in made]), unique=True, max_size=3)) if made else []
        made.append(step(f"s{number}", seconds=cost, after=tuple(before)))
    return made


@given(tables(), st.floats(0, 400), st.data())
def test_a_plan_keeps_budget_worth_and_dependencies(steps, budget, data):
    names = [each.name for each in steps]
    done = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
    cost = {each.name: Cost(each.seconds, "estimate") for each in steps}
    taken, left_out = plan(steps, cost, budget, done=done)
    assert sum(cost[name].seconds for name in taken) <= budget + 1e-9 * budget
    assert taken == [name for name in names if name in taken]
    assert set(taken) | set(left_out) | done == set(names)
    assert not set(taken) & (set(left_out) | done)
    for each in steps:
        ready = [name for name in each.after if name in done or name in taken]
        if each.name in taken:
            assert len(ready) == len(each.after)
        elif each.name in left_out and len(ready) == len(each.after):
            earlier = taken[: len([name for name in taken if names.index(name) < names.index(each.name)])]
            assert cost[each.name].seconds > budget - sum(cost[name].seconds for name in earlier) - 1e-9 * budget
    assert plan(steps, cost, budget, done=done | set(taken) | set(left_out)) == ([], {})


def test_what_is_done_is_published_and_what_is_not_is_kept_apart(tmp_path):
    folder = tmp_path / "run"
    steps = [
        step("good", writes(tmp_path) + " 1", headline="^figure"),
        step("bad", writes(tmp_path, "sys.exit('it broke')") + " 2"),
        step("killed", writes(tmp_path, "import os; os.kill(os.getpid(), 9)") + " 3"),
        step("on-bad", writes(tmp_path) + " 4", after=("bad",)),
        step("on-that", after=("on-bad",)),
        step("silent", leaves=("figure|number",)),
        step("loud", writes(tmp_path) + " 6", leaves=("figure|number",)),
        step("on-good", writes(tmp_path) + " 5", after=("good",)),
        step("elsewhere", memory_gb=1, needs=("sglang", "gpu")) if not env.has_gpu() else step("elsewhere"),
    ]
    state = go(steps, folder)
    assert states(state) == {
        "good": "done", "bad": "failed", "killed": "failed", "on-bad": "blocked", "on-that": "blocked",
        "silent": "failed", "loud": "done", "on-good": "done", "elsewhere": "done" if env.has_gpu() else "skipped",
    }  # fmt: skip
    assert state.steps["good"].line == "figure 1"
    assert state.steps["bad"].line == "it broke"
    assert state.steps["silent"].line == "ended well, but left no record of figure or number"
    assert state.steps["killed"].line.startswith("killed by signal 9")
    assert state.steps["on-bad"].line == "bad failed"
    assert figures(folder / "records") == ["1", "6", "5"]
    assert figures(attempt_folder(folder, "bad", 1)) == ["2"]
    found = {
        r.parameters["step"]: r.values["seconds"] for r in records.read(folder / "records/campaign.step.jsonl").records
    }
    assert set(found) >= {"good", "on-good"}
    assert "bad" not in found

    text = summary.write(state, folder).read_text()
    assert "| good | that it ran | done |" in text
    assert "it broke" in text
    assert "3 done" in text or env.has_gpu()


def test_resume_repeats_nothing_that_is_done(tmp_path):
    folder, flag = tmp_path / "run", tmp_path / "flag"
    once = f"import pathlib\nif not pathlib.Path({str(flag)!r}).exists(): sys.exit('not yet')"
    steps = [step("a", writes(tmp_path) + " a"), step("b", writes(tmp_path, once) + " b"), step("c", after=("b",))]
    assert states(go(steps, folder)) == {"a": "done", "b": "failed", "c": "blocked"}
    flag.touch()
    state = campaign.run(campaign.reopen(folder), folder)
    assert states(state) == {"a": "done", "b": "done", "c": "done"}
    assert [state.steps[name].attempts for name in "abc"] == [1, 2, 1]
    before = (folder / "records/figure.jsonl").read_bytes()
    again = campaign.run(campaign.reopen(folder), folder)
    assert again == state
    assert (folder / "records/figure.jsonl").read_bytes() == before
    assert figures(folder / "records") == ["a", "b"]


def test_the_budget_holds_and_a_later_one_goes_on(tmp_path):
    folder = tmp_path / "run"
    steps = [step("first", "python -c 'print(1)'", 20), step("large", seconds=1000), step("small", seconds=20)]
    state = go(steps, folder, 100)
    assert states(state) == {"first": "done", "large": "left out", "small": "done"}
    assert state.steps["large"].line.startswith("takes 1000 s, ")
    assert states(campaign.run(campaign.reopen(folder), folder, 2000))["large"] == "done"


def test_a_step_that_runs_too_long_is_stopped_by_the_budgets_end(tmp_path):
    started = time.monotonic()
    command = writes(tmp_path, "time.sleep(600)") + " late"
    state = go([step("endless", command, 1.5), step("next", seconds=0.01)], tmp_path / "run", 4)
    assert time.monotonic() - started < 60
    assert state.steps["endless"].state == "stopped"
    assert state.steps["endless"].line.startswith("ran longer than")
    assert state.steps["next"].state == "left out"
    assert figures(tmp_path / "run/records") == []


def runner(folder: Path) -> subprocess.Popen:
    code = f"""
from pathlib import Path
from g4lab import campaign
folder = Path({str(folder)!r})
campaign.run(campaign.reopen(folder), folder)
"""
    return subprocess.Popen([sys.executable, "-c", code])


def test_killed_at_any_moment_it_goes_on(tmp_path):
    folder, go_on = tmp_path / "run", tmp_path / "go"
    hang = f"import pathlib\nif not pathlib.Path({str(go_on)!r}).exists(): time.sleep(600)"
    steps = [
        step("a", writes(tmp_path) + " a"),
        step("b", writes(tmp_path, hang) + " b"),
        step("c", writes(tmp_path) + " c"),
    ]
    new_state(Table(name="test", machine="any", steps=tuple(steps)), ["a", "b", "c"]).save(folder)
    process = runner(folder)
    wait_for(lambda: figures(attempt_folder(folder, "b", 1)) == ["b"])
    (child,) = psutil.Process(process.pid).children()
    with pytest.raises(BadInput, match="no other `g4lab campaign`"):
        campaign.run(campaign.reopen(folder), folder)
    process.kill()
    process.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert states(load_state(folder)) == {"a": "done", "b": "running", "c": "waiting"}
    (folder / "records/figure.jsonl").unlink()  # as if the kill had come between the state and the records
    go_on.touch()
    state = campaign.run(campaign.reopen(folder), folder)
    assert states(state) == {"a": "done", "b": "done", "c": "done"}
    assert sorted(figures(folder / "records")) == ["a", "b", "c"]
    assert figures(attempt_folder(folder, "b", 1)) == ["b"]  # the attempt that was killed stays where it was


def test_an_interrupt_stops_the_step_and_says_so(tmp_path):
    folder = tmp_path / "run"
    steps = [step("a", writes(tmp_path, "time.sleep(600)") + " a"), step("b")]
    new_state(Table(name="test", machine="any", steps=tuple(steps)), ["a", "b"]).save(folder)
    process = runner(folder)
    wait_for(lambda: figures(attempt_folder(folder, "a", 1)) == ["a"])
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    state = load_state(folder)
    assert states(state) == {"a": "stopped", "b": "waiting"}
    assert state.steps["a"].line == "interrupted"
    assert not (folder / "records").exists()


def test_measured_durations_replace_estimates(tmp_path):
    steps = [step("a", seconds=50), step("b", seconds=60)]
    go(steps[:1], tmp_path / "run")
    known = costs(steps, [tmp_path / "run", tmp_path / "nowhere"])
    assert known["a"].seconds < 50
    assert known["a"].source.startswith("measured 2")
    assert known["b"] == (60, "estimate")
    changed = costs([step("a", "python -V", 50)], [tmp_path / "run"])
    assert changed["a"] == (50, "estimate")


def test_the_h200_table():
    """Correctness before every time; each patch that "all" has stands alone too, or is known to do nothing on a GPU."""
    table = campaign.load_table("h200")
    names = [each.name for each in table.steps]
    stages = {each.name: each.stage for each in table.steps}
    assert names.index("proofs-moe") < names.index("bench-moe")
    for each in table.steps:
        if each.stage == "kernels" or each.name.startswith(("serving-all", "tune")):
            assert "correctness" in {stages[name] for name in each.after}, each.name
    alone = {name.removeprefix("serving-") for name in names if name.startswith("serving-")} - {"all", "ratio"}
    without_effect = {"router_scale", "mtp_pp_proxy", "torch_native_swa", "frozen_kv_swa"}  # a CPU's, or of MTP and PP
    assert alone | without_effect == {patch.name for patch in REGISTRY.values() if not patch.opt_in}
    assert names.index("serving-moe_activation") == min(names.index(f"serving-{name}") for name in alone)
    for each in table.steps:
        if each.stage in ("serving", "profiles"):
            assert "spread_dummy" in each.command, each.name


def test_selecting_steps():
    table = campaign.load_table("h200")
    assert campaign.select(table, ["ceilings", "doctor"]) == ["doctor", "ceilings"]
    assert campaign.select(table, ["bench-norms-*"])[0] == "bench-norms-qkv_norm_rope_kv"
    assert campaign.select(table, ["correctness"])[-1] == "gpu-tests"
    with pytest.raises(BadInput, match="--only: got 'warp'"):
        campaign.select(table, ["warp"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": 0}, "greater than 0"),
        ({"surprise": 1}, "surprise"),
        ({"command": "rm -rf /"}, "begins with g4lab or python"),
        ({"after": ["b"]}, "a comes after b, not a step before it"),
        ({"each": ["x", "y"]}, "two steps are named a"),
    ],
)
def test_a_table_with_a_fault_is_refused(tmp_path, change, said):
    one = {"name": "a", "stage": "s", "proves": "p", "seconds": 1, "command": "g4lab doctor", "twin": {}}
    file = tmp_path / "table.yaml"
    file.write_text(yaml.safe_dump({"name": "t", "machine": "m", "steps": [one | change, one | {"name": "b"}]}))
    with pytest.raises(BadInput, match=said):
        campaign.load_table(str(file))


def test_a_folder_without_a_campaign_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a folder of `g4lab campaign`"):
        campaign.reopen(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(BadInput, match=r"state\.json"):
        campaign.reopen(tmp_path)
