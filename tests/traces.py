"""Small traces made by hand, as tables or as a profiler's file, for tests that need to know every number."""

import gzip
import io
import json
from functools import cache
from pathlib import Path

from g4lab.trace import load
from g4lab.trace.families import classify
from g4lab.trace.model import Trace, frame

CAPTURES = Path(__file__).parent / "data" / "traces"  # small real ones
loaded = cache(load)  # a real trace once for all tests; they do not change it


def trace(kernels=None, operators=None, steps=None, launches=None, captures=None, **more) -> Trace:
    """A Trace from columns (lists); families follow from names, and what is left out gets the model's default."""
    rows = {"kernels": kernels, "operators": operators}
    for table, domain in (("kernels", "kernel"), ("operators", "operator")):
        if rows[table]:
            columns = dict(rows[table])
            count = len(columns["name"])
            columns.setdefault("family", classify(columns["name"], domain))
            columns.setdefault("phase", ["unknown"] * count)
            columns.setdefault("capture", [0] * count)
            if table == "kernels":
                columns.setdefault("kind", ["compute"] * count)
                columns.setdefault("device", [0] * count)
            else:
                columns.setdefault("self_us", columns["dur_us"])
            rows[table] = columns
    return Trace(
        source=more.pop("source", "handmade.json"),
        format="pytorch",
        kernels=frame("kernels", rows["kernels"]),
        operators=frame("operators", rows["operators"]),
        launches=frame("launches", launches),
        annotations=frame("annotations"),
        steps=frame("steps", steps),
        captures=frame("captures", captures or {"file": ["handmade.json"], "rank": [0], "stage": [""], "events": [0]}),
        **more,
    )


def event(cat, name, ts, dur, pid=100, tid=100, **args):
    """An event in the PyTorch profiler's format."""
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def op(name, ts, dur, **more):
    return event("cpu_op", name, ts, dur, **more)


def call(name, ts, dur, correlation, **more):
    return event("cuda_runtime", name, ts, dur, correlation=correlation, **more)


def kernel(name, ts, dur, correlation, stream=7, device=0, **more):
    return event(
        "kernel", name, ts, dur, pid=device, tid=stream, device=device, stream=stream, correlation=correlation, **more
    )


def note(name, ts, dur, **more):
    return event("user_annotation", name, ts, dur, **more)


def text(events, **header) -> bytes:
    """A file as Kineto lays it out: one key a line, what describes the file first, its name last."""
    return json.dumps({"schemaVersion": 1, **header, "traceEvents": events, "traceName": "t.json"}, indent=2).encode()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def opened(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)
