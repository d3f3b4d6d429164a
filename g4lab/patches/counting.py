"""Proof that a patch ran: call counters that each engine process keeps in memory and writes down now and then.

A call costs a dictionary update. The file, $G4LAB_COUNTERS_DIR/<pid>.json, is written at the first call of each counter
and then by a background thread at most every INTERVAL_S seconds, so that a killed process loses less than that.
"""

from __future__ import annotations

import collections
import json
import os
import threading
import time
from pathlib import Path

from g4lab import env

INTERVAL_S = 0.5

_counts: collections.Counter[str] = collections.Counter()
_state: dict[str, str] = {}
_notes: dict[str, object] = {}
_dirty = threading.Event()
_lock = threading.Lock()
_writer: threading.Thread | None = None


def count(name: str) -> None:
    """One more call of patch `name` in this process."""
    first = name not in _counts
    _counts[name] += 1
    _dirty.set()
    if first:
        _publish()


def set_state(name: str, state: str) -> None:
    """Say whether patch `name` is on in this process: "on", "off" or why not."""
    _state[name] = state
    _publish()


def note(name: str, value: object) -> None:
    """Keep a JSON-able report of patch `name` beside the counters; the last one counts."""
    _notes[name] = value
    _dirty.set()


def tally(name: str, kind: str, what: str) -> None:
    """One more `what` of this `kind` ("declined", "tiles") in the report of patch `name`: {kind: {what: times}}."""
    report = _notes.get(name, {})
    times = report.get(kind, {})
    note(name, {**report, kind: {**times, what: times.get(what, 0) + 1}})  # new ones: a thread may be writing the old


def counters(folder: Path | str) -> dict[str, int]:
    """Calls of each patch, summed over the processes that wrote into `folder`; empty where none did."""
    total: collections.Counter[str] = collections.Counter()
    for record in _records(folder):
        total.update(record["counts"])
    return dict(total)


def states(folder: Path | str) -> dict[str, str]:
    """What each process's plugin said about each patch; one that is not on in some process shows that reason."""
    seen: dict[str, str] = {}
    for record in _records(folder):
        for name, state in record["state"].items():
            if seen.get(name, "on") == "on":
                seen[name] = state
    return seen


def notes(folder: Path | str, name: str) -> list:
    """The reports that processes left under `name`, one for each process that left one."""
    return [record["notes"][name] for record in _records(folder) if name in record["notes"]]


def _records(folder: Path | str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def _publish() -> None:
    """Write now, and keep writing in the background. Nothing where no folder was asked for."""
    global _writer
    folder = os.environ.get("G4LAB_COUNTERS_DIR")
    if not folder:
        return
    with _lock:
        _write(folder)
        if _writer is None:
            _writer = threading.Thread(target=_write_often, args=(folder,), name="g4lab-counters", daemon=True)
            _writer.start()


def _write_often(folder: str) -> None:
    while True:
        _dirty.wait()
        time.sleep(INTERVAL_S)
        with _lock:
            _write(folder)


def _write(folder: str) -> None:
    _dirty.clear()
    record = {"counts": dict(_counts), "state": dict(_state), "notes": dict(_notes)}
    env.atomic_write(Path(folder) / f"{os.getpid()}.json", json.dumps(record))


def _after_fork() -> None:
    """A forked child has its parent's memory but not its thread: start from nothing, or calls would count twice."""
    global _writer, _lock
    _writer, _lock = None, threading.Lock()
    for store in (_counts, _state, _notes):
        store.clear()


os.register_at_fork(after_in_child=_after_fork)
