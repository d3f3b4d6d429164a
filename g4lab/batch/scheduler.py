"""Batch runs: notebooks executed in order, each in a child process, resumable after a kill.

A notebook whose metadata says `exclusive` runs alone, because it measures time; the others run side by side up to the
profile's `jobs`. Whatever fails, the rest still runs.
"""

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from g4lab import children, env, records
from g4lab.batch import execute, notebooks
from g4lab.batch.notebooks import Notebook
from g4lab.batch.state import Entry, RunState, key_of, load_state, new_state
from g4lab.errors import BadInput, bad
from g4lab.profiles import Profile

POLL_S = 0.1


def new_folder(runs: Path | None = None) -> Path:
    """runs/<UTC time>, which does not exist yet."""
    return (runs or records.runs_dir()) / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def prepare(which: Sequence[str], profile: Profile, given: Mapping[str, Any], folder: Path) -> RunState:
    """Check everything that can be checked before any notebook runs, and write the run's first state.

    Raises:
        BadInput: an unknown notebook or parameter, a value of another type than the default, or a circle of `after`.
    """
    found = notebooks.find(which)
    _order(found)
    chosen = notebooks.parameters_for(found, profile.parameters, given)
    entries = {n.name: _entry(n, chosen[n.name], profile) for n in found}
    state = new_state(profile, given, entries)
    state.save(folder)
    return state


def reopen(folder: Path) -> RunState:
    """The state to resume: finished notebooks whose content, parameters and environment are unchanged stay done.

    One that comes `after` a notebook that must run again runs again too.
    """
    state = load_state(folder)
    found = [notebooks.load(entry.path) for entry in state.notebooks.values()]
    chosen = notebooks.parameters_for(found, state.profile.parameters, state.given)
    for notebook in _order(found):
        old, fresh = state.notebooks[notebook.name], _entry(notebook, chosen[notebook.name], state.profile)
        behind = [state.notebooks[name].state != "done" for name in notebook.after if name in state.notebooks]
        kept = (
            old.state == "done" and old.key == fresh.key and _output(folder, notebook.name).exists() and not any(behind)
        )
        state.notebooks[notebook.name] = old if kept else fresh
    state.save(folder)
    return state


def run(
    state: RunState, folder: Path, watch: Callable[[RunState, Path], None] = lambda state, folder: None
) -> RunState:
    """Run every notebook of `state` that is waiting; returns the state with all of them done, failed or stopped.

    Args:
        watch: called at every look at the children, to show progress.

    Raises:
        BadInput: another process is running in this folder.
        KeyboardInterrupt: after the children are stopped and the state is saved.
    """
    folder = folder.resolve()
    found = {name: notebooks.load(entry.path) for name, entry in state.notebooks.items() if entry.state == "waiting"}
    order = [notebook.name for notebook in _order(list(found.values()))]
    running: dict[str, tuple[subprocess.Popen, float]] = {}
    with only_one(folder, "g4lab run"):
        try:
            while order or running:
                for name in [name for name in running if _ended(state, folder, name, *running[name])]:
                    del running[name]
                    state.save(folder)
                for name in _startable(found, order, list(running), state.profile.jobs):
                    order.remove(name)
                    running[name] = _start(state, folder, found[name]), time.monotonic()
                    state.save(folder)
                watch(state, folder)
                time.sleep(POLL_S if running else 0)
        finally:
            for name, (process, since) in running.items():
                children.stop(process, first=signal.SIGINT)
                _close(state.notebooks[name], "stopped", since, _result(folder, name, "interrupted"))
            state.save(folder)
            watch(state, folder)
    return state


def cells(folder: Path, name: str) -> tuple[int, int] | None:
    """(cells run, cells) of a notebook of the run; None before its first."""
    return children.bar_position(_log(folder, name))


def _entry(notebook: Notebook, parameters: dict[str, Any], profile: Profile) -> Entry:
    return Entry(path=notebook.path, key=key_of(notebook.sha, parameters, profile.env), parameters=parameters)


def _order(found: Sequence[Notebook]) -> list[Notebook]:
    """Reading order, but nothing before what it comes `after`."""
    placed: list[Notebook] = []
    left = sorted(found, key=lambda n: n.name)
    while left:
        waiting = {n.name for n in left}
        ready = [n for n in left if not waiting & set(n.after)]
        if not ready:
            raise BadInput("notebooks wait for each other (metadata g4lab.after): " + ", ".join(sorted(waiting)))
        placed.append(ready[0])
        left.remove(ready[0])
    return placed


def _startable(found: Mapping[str, Notebook], order: Sequence[str], running: Sequence[str], jobs: int) -> Iterator[str]:
    """Names that may start now, at most as many as there is room for."""
    if any(found[name].exclusive for name in running):
        return
    busy = set(order) | set(running)
    ready = [name for name in order if not busy & set(found[name].after)]
    shared = [name for name in ready if not found[name].exclusive]
    yield from shared[: jobs - len(running)]
    if not shared and not running:
        yield from ready[:1]


def _start(state: RunState, folder: Path, notebook: Notebook) -> subprocess.Popen:
    name, profile = notebook.name, state.profile
    job = execute.Job(
        notebook=notebook.path,
        output=_output(folder, name),
        html=folder / "html" / f"{name}.html",
        result=_result_file(folder, name),
        cwd=notebook.path.parent,
        parameters=state.notebooks[name].parameters,
        cell_timeout_s=profile.cell_timeout_s,
    )
    for stale in (job.output, job.html, job.result, _log(folder, name)):
        stale.unlink(missing_ok=True)
    job_file = folder / "jobs" / f"{name}.json"
    env.atomic_write(job_file, job.model_dump_json())
    state.notebooks[name].state = "running"
    return children.start(
        [sys.executable, "-m", "g4lab.batch.execute", job_file],
        log=_log(folder, name),
        env={"G4LAB_RECORDS": str(folder / "records"), **profile.env},
    )


def _ended(state: RunState, folder: Path, name: str, process: subprocess.Popen, since: float) -> bool:
    entry = state.notebooks[name]
    if time.monotonic() - since > state.profile.notebook_timeout_s:
        children.stop(process, first=signal.SIGINT)
        over = f"stopped: the notebook ran longer than {state.profile.notebook_timeout_s} s"
        _close(entry, "failed", since, _result(folder, name, over).model_copy(update={"error": over}))
    elif process.poll() is None:
        return False
    else:
        last = children.last_lines(_log(folder, name), 1)
        result = _result(folder, name, f"its process ended with code {process.returncode}: {last}")
        _close(entry, "done" if result.error is None else "failed", since, result)
    return True


def _close(entry: Entry, how: str, since: float, result: execute.Result) -> None:
    entry.state, entry.seconds = how, round(time.monotonic() - since, 2)
    entry.error, entry.cell = result.error, result.cell


def _result(folder: Path, name: str, otherwise: str) -> execute.Result:
    file = _result_file(folder, name)
    return (
        execute.Result.model_validate(json.loads(file.read_text()))
        if file.exists()
        else execute.Result(error=otherwise)
    )


def _output(folder: Path, name: str) -> Path:
    return folder / "notebooks" / f"{name}.ipynb"


def _result_file(folder: Path, name: str) -> Path:
    return folder / "jobs" / f"{name}.result.json"


def _log(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.log"


@contextmanager
def only_one(folder: Path, command: str) -> Iterator[None]:
    """Hold the folder's lock. Raises BadInput while another process of `command` does."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise bad("run folder", str(folder), f"one that no other `{command}` is using now") from None
        yield
