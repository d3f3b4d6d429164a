"""Hand-made events in the PyTorch profiler's format, for the tests of g4lab.trace."""

import gzip
import io
import json


def event(cat, name, ts, dur, pid=100, tid=100, **args):
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
    """As Kineto lays it out: one key a line, what describes the file before the events and its name behind them."""
    return json.dumps({"schemaVersion": 1, **header, "traceEvents": events, "traceName": "t.json"}, indent=2).encode()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def opened(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)
