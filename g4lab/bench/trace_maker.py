"""Traces of any length in the PyTorch profiler's layout, to measure readers with: a decode loop, launch by launch."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

from g4lab import env
from g4lab.errors import bad

# A layer of a decode step: operator, the kernel it launches, about how many µs that runs. Made up, but for the names.
LAYER = (
    ("aten::linear", "nvjet_tst_64x8_64x16_4x1_v_bz_TNT", 6),
    ("g4lab::qkv_norm", "_qkv_norm_kernel", 2),
    ("g4lab::rope", "void rotary_embedding_kernel<__nv_bfloat16, true>(long const*, __nv_bfloat16*, int, long)", 2),
    ("g4lab::decode_attention", "_fwd_grouped_kernel_stage1", 9),
    ("g4lab::decode_attention", "_fwd_kernel_stage2", 2),
    ("aten::linear", "nvjet_tst_64x8_64x16_2x1_v_bz_TNN", 5),
    ("aten::topk", "void at::native::sbtopk::gatherTopK<c10::BFloat16, unsigned int, 2, false>(int, int, int)", 5),
    ("g4lab::fused_moe", "fused_moe_kernel", 21),
)
LAYERS = 30
PID, TID, STREAM = 4242, 4242, 7
_HEAD = """{
  "schemaVersion": 1,
  "deviceProperties": [
    {"id": 0, "name": "made", "totalGlobalMem": 0}
  ],
  "traceEvents": [
"""
_TAIL = '\n  ],\n  "traceName": "made.json",\n  "displayTimeUnit": "ms"\n}\n'


def write_trace(path: str | Path, events: int, seed: int = 0) -> int:
    """Write a trace of at least `events` events (whole steps); gzip where the name ends in .gz.

    Returns:
        The number of events written. The same arguments give the same bytes.

    Raises:
        BadInput: fewer than 1 event.
    """
    if events < 1:
        raise bad("events", events, "1 or more")
    pack = zlib.compressobj(1, wbits=31) if str(path).endswith(".gz") else None
    written, steps = 0, _steps(random.Random(seed))
    with env.atomic_file(path) as file:
        text = _HEAD
        while written < events:
            step = next(steps)
            text += (",\n" if written else "") + ",\n".join(map(json.dumps, step))
            written += len(step)
            file.write(pack.compress(text.encode()) if pack else text.encode())
            text = ""
        file.write(pack.compress(_TAIL.encode()) + pack.flush() if pack else _TAIL.encode())
    return written


def _steps(rng: random.Random) -> Iterator[list[dict]]:
    """The events of one decode step after another."""
    clock, number = 4_203_669_603_000.0, 0
    while True:
        start, events = clock, []
        for _ in range(LAYERS):
            for operator, kernel, micros in LAYER:
                number += 1
                events += _launch(operator, kernel, clock, round(micros * rng.uniform(0.9, 1.2), 3), number)
                clock = round(clock + rng.uniform(22, 30), 3)
        events.append(_complete("user_annotation", "step[DECODE bs=8]", start, round(clock - start, 3), PID, TID))
        yield events


def _launch(operator: str, kernel: str, ts: float, micros: float, number: int) -> list[dict]:
    """What the profiler writes of one operator that launches one kernel: operators, call, flow, memory, kernel."""
    ids = {"External id": number, "Record function id": 0, "Ev Idx": number}
    link = {"id": number, "cat": "ac2g", "name": "ac2g"}
    begin = round(ts + 30, 3)
    resources = {"registers per thread": 64, "shared memory": 0, "grid": [132, 1, 1], "block": [128, 1, 1]}
    where = {"device": 0, "context": 1, "stream": STREAM, "correlation": number}
    memory = {"Ev Idx": number, "Device Type": 1, "Device Id": 0, "Addr": 139926520725504 + number, "Bytes": 4096}
    return [
        _complete("cpu_op", operator, ts, 20.5, PID, TID, ids | {"Sequence number": number}),
        _complete("cpu_op", "aten::empty", round(ts + 1, 3), 2.25, PID, TID, ids),
        {"ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": PID, "tid": TID}
        | {"ts": round(ts + 2, 3), "args": memory},
        _complete("cuda_runtime", "cudaLaunchKernel", round(ts + 8, 3), 6.5, PID, TID, ids | {"correlation": number}),
        {"ph": "s", "pid": PID, "tid": TID, "ts": round(ts + 8, 3)} | link,
        _complete("kernel", kernel, begin, micros, 0, STREAM, {"External id": number, "queued": 0} | where | resources),
        {"ph": "f", "pid": 0, "tid": STREAM, "ts": begin, "bp": "e"} | link,
    ]


def _complete(cat: str, name: str, ts: float, dur: float, pid: int, tid: int, args: dict | None = None) -> dict:
    event = {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur}
    return event | {"args": args} if args else event
