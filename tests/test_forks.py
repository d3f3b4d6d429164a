"""Forked processes: what they share (imports), what they do not (all else), and that none outlives its owner."""

import json
import os
import signal
import sys
import time

import psutil
import pytest

from g4lab import children
from g4lab.errors import Unavailable
from g4lab.runners import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks.start is for Linux")

HEAVY = """
import os
imported_by, touched = os.getpid(), False
"""
JOB = """
import heavy, json, multiprocessing, os, sys, time

def report():
    touched, heavy.touched = heavy.touched, True
    return {"pid": os.getpid(), "parent": os.getppid(), "imported by": heavy.imported_by, "touched": touched,
            "argv": sys.argv, "cwd": os.getcwd(), "stdin": sys.stdin.read(),
            "env": {name: value for name, value in os.environ.items() if "MINE" in name}}

def work(queue):
    queue.put(report())

if __name__ == "__main__":
    found = report()
    os.environ["MINE_SINCE"] = "1"
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    found["workers"] = []
    for _ in range(0 if "wait" in sys.argv else 3):
        worker = context.Process(target=work, args=(queue,))
        worker.start()
        found["workers"].append(queue.get() | {"known as": worker.pid})
        worker.join()
        found["workers"][-1]["code"] = worker.exitcode
    print(json.dumps(found), flush=True)
    if "wait" in sys.argv:
        worker = context.Process(target=time.sleep, args=(600,))
        worker.start()
        print("waiting", flush=True)
        time.sleep(600)
    sys.exit(3)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Starts job.py, which imports heavy.py, as `python -m job ARGUMENTS` with its log in a file of this name."""
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []

    def start(name, *arguments, module="job", **options):
        options = {"imports": ["heavy"]} | options
        started.append(forks.start((sys.executable, "-m", module, *arguments), log=tmp_path / name, **options))
        return started[-1], tmp_path / name

    yield start
    for process in started:
        children.stop(process)


def lines(log, count=1, within_s=30):
    """The first `count` lines of a log, once they are there."""
    deadline = time.monotonic() + within_s
    while log.read_text().count("\n") < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return log.read_text().splitlines()[:count]


def gone(processes, within_s=5):
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_what_is_shared_and_what_is_not(run, tmp_path):
    (one, log), (two, other_log) = run("one", "a", "b c", env={"G4LAB_MINE": "1"}), run("two")
    assert (one.wait(30), two.wait(30)) == (3, 3)
    first, second = json.loads(log.read_text()), json.loads(other_log.read_text())
    assert first["imported by"] == second["imported by"] not in (first["pid"], second["pid"])
    assert not first["touched"]
    assert not second["touched"]
    assert first["parent"] == one.pid  # the supervisor
    assert first["argv"] == [str(tmp_path / "job.py"), "a", "b c"]
    assert (first["cwd"], first["stdin"]) == (os.getcwd(), "")
    assert (first["env"], second["env"]) == ({"G4LAB_MINE": "1"}, {})


def test_workers_are_spawned_as_ever(run):
    _, log = run("log", env={"G4LAB_MINE": "1"})
    found = json.loads(lines(log)[0])
    assert len({worker["pid"] for worker in found["workers"]}) == 3
    for worker in found["workers"]:
        assert (worker["known as"], worker["parent"], worker["code"]) == (worker["pid"], found["pid"], 0)
        assert worker["argv"] == found["argv"]
        assert worker["env"] == {"G4LAB_MINE": "1", "MINE_SINCE": "1"}
        assert not worker["touched"]
    # Of three spares multiprocessing's resource tracker has one; the third worker is a new Python, and imports.
    assert [worker["imported by"] == found["imported by"] for worker in found["workers"]] == [True, True, False]


@pytest.mark.parametrize("victim", ["asked to end", "process", "supervisor", "fork server"])
def test_all_ends_together_whatever_is_killed(run, victim):
    process, log = run("log", "wait")
    lines(log, 2)
    supervisor = psutil.Process(process.pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    assert len(family) >= 4  # with the process, its worker and multiprocessing's resource tracker
    if victim == "asked to end":
        children.stop(process)
    else:
        {"process": family[1], "supervisor": supervisor, "fork server": supervisor.parent()}[victim].kill()
    ended = process.wait(10)
    assert ended == {"process": 128 + signal.SIGKILL, "supervisor": -signal.SIGKILL}.get(victim, 128 + signal.SIGTERM)
    assert gone(family)
    again, _ = run("again")
    assert again.wait(30) == 3


def test_another_environment_or_folder_imports_for_itself(run, tmp_path, monkeypatch):
    (_, log), (_, other_log) = run("one"), run("two", env={"MINE": "1"})
    monkeypatch.chdir(tmp_path)
    _, third_log = run("three")
    found = [json.loads(lines(each)[0]) for each in (log, other_log, third_log)]
    importers = {each["imported by"] for each in found}
    assert len(importers) == 3
    assert [each["env"] for each in found] == [{}, {"MINE": "1"}, {}]
    one, _ = run("again", "wait")
    for i in range(forks.MOST):  # those that are in nobody's use make room
        run(str(i), env={"MINE": f"again {i}"})[0].wait(30)
    assert one.poll() is None
    assert sum(psutil.pid_exists(pid) for pid in importers) == 1


def test_what_cannot_be_imported_is_said_where_it_is_needed(run):
    process, log = run("log", module="no_such_module", imports=["no_such_module"])
    assert process.wait(30) == 1
    assert log.read_text().endswith("No module named no_such_module\n")  # and spares that were not needed say nothing


def test_late_imports(run, tmp_path):
    (tmp_path / "heavy.py").write_text("import time\ntime.sleep(600)")
    with pytest.raises(Unavailable, match="heavy took longer than 1 s to import"):
        run("log", timeout_s=1)
