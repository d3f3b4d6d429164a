"""What reading a trace costs: g4lab's `load` beside HolisticTraceAnalysis' parser, each run in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from g4lab.errors import Unavailable, bad

# Each is run by a fresh interpreter with the trace as its argument. Times leave out start-up and imports; the peak is
# the whole process's, `imports` what it had reached before it read anything.
_MEASURE = """
import json, resource, sys, time
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
{imports}
before, start = peak(), time.perf_counter()
rows = {read}
print(json.dumps(dict(seconds=time.perf_counter() - start, peak_mb=peak(), imports_mb=before, rows=rows)))
"""
_G4LAB = _MEASURE.format(
    imports="from g4lab.trace import load; import g4lab.trace.reading",
    read="(lambda t: len(t.kernels) + len(t.operators) + len(t.launches) + len(t.annotations))(load(sys.argv[1]))",
)
# HTA's entry point without its worker pool, which one file does not need, and its memory profiler, which costs time.
_HTA = _MEASURE.format(
    imports="import logging; logging.disable(); from hta.common.trace import Trace",
    read="(lambda t: t.parse_traces(use_multiprocessing=False, use_memory_profiling=False) or len(t.traces[0]))"
    "(Trace(trace_files={0: sys.argv[1]}))",
)
READERS = {"g4lab": _G4LAB, "hta": _HTA}


def compare(
    path: str | Path,
    rounds: int = 3,
    hta_python: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Read one trace with every reader, in turn, `rounds` times.

    Args:
        path: a PyTorch profiler trace.
        hta_python: an interpreter that has HolisticTraceAnalysis; default this one.

    Returns:
        A row for each reader: median, lowest and highest seconds, peak_mb (the highest), imports_mb, rows of its
        tables, and `note`: why it could not run.

    Raises:
        BadInput: there is no such file, or fewer than 1 round. Unavailable: g4lab's own reader failed.
    """
    if not Path(path).is_file():
        raise bad("path", str(path), "an existing trace")
    if rounds < 1:
        raise bad("rounds", rounds, "1 or more")
    runs: dict[str, list[dict]] = {reader: [] for reader in READERS}
    notes = dict.fromkeys(READERS, "")
    for number in range(rounds):
        for reader, code in READERS.items():
            if notes[reader]:
                continue
            if progress:
                progress(f"{reader}, round {number + 1} of {rounds}")
            python = hta_python if reader == "hta" and hta_python else sys.executable
            done = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True)
            if done.returncode:
                notes[reader] = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            else:
                runs[reader].append(json.loads(done.stdout.splitlines()[-1]))
    if notes["g4lab"]:
        raise Unavailable(f"g4lab cannot read {path}: {notes['g4lab']}")
    return pd.DataFrame([_row(reader, runs[reader], notes[reader]) for reader in READERS])


def _row(reader: str, runs: list[dict], note: str) -> dict:
    seconds = pd.Series([run["seconds"] for run in runs], dtype=float)
    return {
        "reader": reader,
        "seconds": seconds.median(),
        "lowest_s": seconds.min(),
        "highest_s": seconds.max(),
        "peak_mb": max((run["peak_mb"] for run in runs), default=float("nan")),
        "imports_mb": max((run["imports_mb"] for run in runs), default=float("nan")),
        "rows": runs[0]["rows"] if runs else 0,
        "note": note,
    }
