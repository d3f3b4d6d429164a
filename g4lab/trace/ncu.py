"""Nsight Compute results as CSV: `ncu --csv`, or `ncu --import REPORT --csv`, of the details page or of the raw page.

The details page has a row for every metric of every kernel, the raw page a row for every kernel with the units in a row
of their own beneath the header (Nsight Compute CLI documentation, "Console Output"). Lines of the tool (==PROF== ...)
and of the program itself stand before and between.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from g4lab.errors import bad
from g4lab.trace.assembly import assemble
from g4lab.trace.model import Problem, Trace
from g4lab.trace.raw import COLUMNS, Raw

_PER_MICROSECOND = {
    **dict.fromkeys(("ns", "nsecond", "nanosecond"), 1e3),
    **dict.fromkeys(("us", "usecond", "microsecond"), 1.0),
    **dict.fromkeys(("ms", "msecond", "millisecond"), 1e-3),
    **dict.fromkeys(("s", "second"), 1e-6),
}
_DURATIONS = ("gpu__time_duration.sum", "Duration", "gpu__time_duration.avg", "gpu__time_duration.max")
_WHO = (
    *("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Kernel Time", "Context", "Stream"),
    *("Block Size", "Grid Size", "Device", "CC"),
)
_HEADER = re.compile(rb'^(\xef\xbb\xbf)?"?ID"?,.*\bKernel Name\b', re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d*)(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?(\d{1,3}(\.\d{3})+|\d+),\d+")
_NO_TIMELINE = "Nsight Compute runs kernels one by one and repeats them: durations are real, a timeline is not there"


class _Kernel(NamedTuple):
    about: dict[str, str]  # of the columns _WHO
    metrics: dict[str, tuple[str, str]]  # name -> (unit, value), as the file has them


def sniff(head: bytes) -> bool:
    """Whether a file that starts with `head` is Nsight Compute's CSV."""
    return bool(_HEADER.search(head)) or head.startswith(b"==PROF==")


def read_ncu(path: Path | str) -> Trace:
    """The kernels of an Nsight Compute CSV with their durations, in the order they ran, and every metric.

    There is no timeline: `ts_us` is NaN, and a problem says that spans, idle time and launch delays do not exist.
    meta["metrics"] is a DataFrame with a row for each row of `kernels` and a column for each metric and its unit
    ("dram__bytes_read.sum [byte]"), numbers where they are numbers.

    Raises:
        BadInput: no such file, no table of kernels in it, no duration among the metrics, or numbers with a decimal
            comma.
    """
    path = Path(path)
    if not path.is_file():
        raise bad("path", str(path), "an existing file")
    text = path.read_bytes().decode("utf-8-sig", "replace")
    header, rows, problems = _table(text, path)
    found = list(_by_metric(header, rows) if "Metric Name" in header else _by_kernel(header, rows))
    durations = [_duration(kernel.metrics, path) for kernel in found]
    if not any(duration is not None for duration in durations):
        how = "collect one with `--metrics gpu__time_duration.sum` or `--section SpeedOfLight`"
        raise bad("path", str(path), f"a duration for at least one of {len(found)} kernels: {how}")
    kept = [(kernel, dur) for kernel, dur in zip(found, durations, strict=True) if dur is not None]
    if lost := len(found) - len(kept):
        problems.append(Problem("kernels without a duration were left out", lost))
    raw = {table: Raw(table) for table in COLUMNS}
    raw["activities"].add(**_columns(kept))
    captures = [{"file": path.name, "rank": 0, "stage": "", "events": len(found)}]
    meta = {"producer": "Nsight Compute", "devices": {}, "metrics": _metrics([kernel for kernel, _ in kept])}
    return assemble(str(path), "ncu", raw, captures, meta, [Problem(_NO_TIMELINE), *problems])


def _table(text: str, path: Path) -> tuple[list[str], list[dict[str, str]], list[Problem]]:
    """The header, its rows as dicts, and what was no row."""
    lines = text.split("\n")
    parsed = ((line, _fields(line)) for line in lines)
    header = next((fields for _, fields in parsed if {"ID", "Kernel Name"} <= set(fields)), None)
    if header is None:
        raise bad("path", str(path), "the table that `ncu --csv` prints, with the columns ID and Kernel Name")
    rows, cut, other = [], 0, 0
    for line, fields in parsed:
        whole = len(fields) == len(header) and line.count('"') % 2 == 0
        if whole and fields != header:
            rows.append(dict(zip(header, fields, strict=True)))
        elif line.startswith('"') and fields != header:
            cut += 1
        elif not whole and line.strip() and not line.startswith("=="):
            other += 1
    problems = [Problem("rows that end early were left out", cut)] if cut else []
    if other:
        problems.append(Problem(f"{other:,} lines between the rows are not of the table (the program's own output?)"))
    return header, rows, problems


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r")]), [])
    except csv.Error:  # a field beyond csv's limit
        return []


def _by_metric(header: list[str], rows: list[dict[str, str]]) -> Iterator[_Kernel]:
    """Kernels of the details page. A rule's row has no metric."""
    kernels: dict[tuple[str, ...], _Kernel] = {}
    about = [name for name in _WHO if name in header]
    for row in rows:
        key = tuple(row[name] for name in about)
        kernel = kernels.setdefault(key, _Kernel(dict(zip(about, key, strict=True)), {}))
        name, unit = row["Metric Name"], row.get("Metric Unit", "")
        if name:
            # Two sections give "Memory Throughput", one in percent and one in bytes a second.
            same = kernel.metrics.get(name, (unit, ""))[0] == unit
            kernel.metrics[name if same else f"{name} ({unit})"] = (unit, row.get("Metric Value", ""))
    yield from kernels.values()


def _by_kernel(header: list[str], rows: list[dict[str, str]]) -> Iterator[_Kernel]:
    """Kernels of the raw page. The row of units has no ID."""
    metrics = [name for name in header if name not in _WHO]
    units = next((row for row in rows if not row["ID"]), dict.fromkeys(metrics, ""))
    for row in rows:
        if row["ID"]:
            about = {name: row[name] for name in _WHO if name in row}
            yield _Kernel(about, {name: (units[name], row[name]) for name in metrics})


def _duration(metrics: dict[str, tuple[str, str]], path: Path) -> float | None:
    """µs, or None where the kernel has no duration that is a number."""
    for name in _DURATIONS:
        unit, value = metrics.get(name, ("", ""))
        if _DECIMAL_COMMA.fullmatch(value) and not _NUMBER.fullmatch(value):
            raise bad("path", str(path), f"numbers with a decimal point; {value} is written with LC_ALL other than C")
        number = _number(value)
        if isinstance(number, float) and number >= 0 and math.isfinite(number):
            if unit.lower() not in _PER_MICROSECOND:
                raise bad("path", f"{name} in {unit or 'no unit'}", "one of " + ", ".join(_PER_MICROSECOND))
            return number / _PER_MICROSECOND[unit.lower()]
    return None


def _number(value: str) -> float | str:
    """A float, thousands separators taken out, or the text as it is."""
    if _NUMBER.fullmatch(value) and any(map(str.isdigit, value)):
        return float(value.replace(",", ""))
    return value


def _integer(value: str) -> int:
    return int(value) if re.fullmatch(r"\d{1,9}", value) else -1


def _columns(kept: list[tuple[_Kernel, float]]) -> dict[str, Any]:
    return {
        "name": [kernel.about["Kernel Name"] for kernel, _ in kept],
        "engine": "kernel",
        "ts_us": [math.nan] * len(kept),
        "dur_us": [duration for _, duration in kept],
        "stream": [_integer(kernel.about.get("Stream", "")) for kernel, _ in kept],
        "device": [_integer(kernel.about.get("Device", "")) for kernel, _ in kept],
        "pid": [_integer(kernel.about.get("Process ID", "")) for kernel, _ in kept],
        **dict.fromkeys(("correlation", "graph", "node"), -1),
        "capture": 0,
    }


def _metrics(kernels: list[_Kernel]):
    import pandas as pd

    rows = [
        {f"{name} [{unit}]" if unit else name: _number(value) for name, (unit, value) in kernel.metrics.items()}
        for kernel in kernels
    ]
    about = [
        {name: kernel.about[name] for name in ("Block Size", "Grid Size") if name in kernel.about} for kernel in kernels
    ]
    return pd.DataFrame([size | row for size, row in zip(about, rows, strict=True)])
