"""PyTorch profiler traces (Chrome JSON, 2021 to today, CUDA, ROCm and CPU) to raw tables."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from typing import Any, BinaryIO

import numpy as np

from g4lab.trace.chunks import Args, ChromeFile, Event
from g4lab.trace.model import Problem
from g4lab.trace.raw import Raw

# Category -> table. Profilers before 2022 wrote Kernel, Memcpy, Memset, Operator and Runtime.
ACTIVITIES = {
    "kernel": "kernel",
    "gpu_memcpy": "memcpy",
    "gpu_memset": "memset",
    "memcpy": "memcpy",
    "memset": "memset",
}
TABLE = {
    **dict.fromkeys(ACTIVITIES, "activities"),
    **dict.fromkeys(("cpu_op", "operator"), "operators"),
    **dict.fromkeys(("cuda_runtime", "cuda_driver", "runtime", "driver"), "launches"),
    "user_annotation": "annotations",
}
_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}|-?\d{1,19}")
_NO_ARGS = Args()


def read_chrome(
    file: BinaryIO, name: str, capture: int, raw: dict[str, Raw]
) -> tuple[dict[str, Any], int, list[Problem]]:
    """Append one file's events to the raw tables.

    Args:
        file: binary, gzip or plain. name: for messages. capture: the file's row in the table of captures.

    Returns:
        What the file says beside its events, the number of events in it, and what was repaired.

    Raises:
        BadInput: the file is empty or no Chrome trace.
    """
    chrome, wrong = ChromeFile(file, name), Counter()
    for events in chrome:
        groups: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            groups[event.cat].append(event)
        for category, members in groups.items():
            table = TABLE.get(category.lower())
            if not table:
                continue
            members = _usable(members, wrong)
            if table == "operators":  # the profiler of 2021 filed its step marks under operators
                marks = [event for event in members if event.name.startswith("ProfilerStep#")]
                if marks:
                    _add(raw["annotations"], "annotations", category, marks, capture)
                    members = [event for event in members if not event.name.startswith("ProfilerStep#")]
            _add(raw[table], table, category, members, capture)
    problems = list(chrome.problems)
    if wrong["negative"]:
        problems.append(Problem(f"{wrong['negative']:,} negative durations, taken as 0"))
    if wrong["timeless"]:
        problems.append(Problem("events without a start or a duration", wrong["timeless"]))
    return chrome.header, chrome.count, problems


def _usable(events: list[Event], wrong: Counter) -> list[Event]:
    """Complete events with a finite start and duration; a negative duration becomes 0."""
    events = [event for event in events if event.ph == "X"]
    ts = np.array([event.ts for event in events])
    dur = np.array([event.dur for event in events])
    good = np.isfinite(ts) & np.isfinite(dur)
    if good.all() and (dur >= 0).all():
        return events
    for index in np.flatnonzero(dur < 0):
        events[index].dur = 0.0
    wrong["negative"] += int((dur < 0).sum())
    wrong["timeless"] += int((~good).sum())
    return [event for event, keep in zip(events, good, strict=True) if keep]


def _add(raw: Raw, table: str, category: str, events: list[Event], capture: int) -> None:
    pid = _integers([event.pid for event in events])
    tid = _integers([event.tid for event in events])
    columns: dict[str, Any] = {
        "name": [event.name for event in events],
        "ts_us": [event.ts for event in events],
        "dur_us": [event.dur for event in events],
        "pid": pid,
        "tid": tid,
        "capture": capture,
    }
    if table in ("activities", "launches"):
        args = [event.args or _NO_ARGS for event in events]
        columns["correlation"] = _integers([each.correlation for each in args])
    if table == "activities":
        # On a GPU's rows the file's process is the device and its thread the stream.
        columns["engine"] = ACTIVITIES[category.lower()]
        columns["device"] = _integers([each.device for each in args], pid)
        columns["stream"] = _integers([each.stream for each in args], tid)
        columns["graph"] = _integers([each.graph for each in args])
        columns["node"] = _integers([each.node for each in args])
        columns["pid"] = -1
    raw.add(**columns)


def _integers(values: list[Any], default: np.ndarray | None = None) -> np.ndarray:
    """int64 [n]; numbers inside text count ("stream 7", "0x0"), what has none is `default` or -1."""
    if set(map(type, values)) <= {int}:
        with contextlib.suppress(OverflowError):
            return np.array(values, np.int64)
    absent = default.tolist() if default is not None else [-1] * len(values)
    return np.array([_integer(value, other) for value, other in zip(values, absent, strict=True)], np.int64)


def _integer(value: Any, default: int) -> int:
    if isinstance(value, str):
        found = _NUMBER.search(value)
        value = int(found[0], 0 if found[0].startswith("0x") else 10) if found else None
    if value is None or not -(2**63) <= value < 2**63:  # NaN fails every comparison
        return default
    return int(value)
