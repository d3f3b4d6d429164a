"""Nsight Systems reports: the SQLite files that `nsys export --type sqlite` writes.

Schema: "SQLite Schema Reference" and "Common SQLite Examples" of the Nsight Systems documentation, 2021 to 2025. Tables
are made only where there is something to put into them, and columns came and went: what is absent is absent here too.
Times are nanoseconds since the start of the session; a serialized id carries process and thread in 24 bits each.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from g4lab.errors import bad
from g4lab.trace.assembly import assemble
from g4lab.trace.model import Problem, Trace
from g4lab.trace.nsys_export import UNKNOWN, Export
from g4lab.trace.raw import COLUMNS, Raw

MAGIC = b"SQLite format 3\0"
REPORTS = (".nsys-rep", ".qdrep")
KERNEL, COPY, FILL, GRAPH, CALL = (
    f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE", "RUNTIME")
)
_PROCESS, _THREAD = ">> 24 & 16777215", "& 16777215"
_ON_GPU = {
    "pid": f"globalPid {_PROCESS}",
    "device": "deviceId",
    "stream": "streamId",
    "correlation": "correlationId",
    "graph": "graphId",
    "node": "graphNodeId",
}
_ON_CPU = {"pid": f"globalTid {_PROCESS}", "tid": f"globalTid {_THREAD}"}
_RANGES = "eventType IN (59, 60)"  # push/pop ranges and start/end ranges; the others are marks and definitions
_CALL_VERSION = re.compile(r"(_v\d+|_ptsz|_ptds)+$")  # cudaLaunchKernel_v7000 is cudaLaunchKernel elsewhere
# CUPTI's CUpti_ActivityMemcpyKind, for exports that do not list their kinds of copies.
_COPIES = dict(enumerate(["Unknown", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH", "PtoP"]))


def sniff(head: bytes) -> bool:
    """Whether a file that starts with `head` is an SQLite database."""
    return head.startswith(MAGIC)


def read_nsys(path: Path | str) -> Trace:
    """Kernels, copies, fills, CUDA calls and NVTX ranges of an Nsight Systems export; the file stays as it is.

    Every process is a capture of its own, ranked by process id. Launches are found by process and correlation id. A
    CUDA graph that was traced as a whole is one row named "CUDA graph replay", and a problem says how to see inside.

    Raises:
        BadInput: no such file, an .nsys-rep that is not exported, no SQLite database or a damaged one, or one without
            any CUDA activity.
    """
    path = Path(path)
    _check(path)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _trace(path, Export(connection))
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:  # the last from SQLite's message itself
        raise bad("path", str(path), f"a whole SQLite export of Nsight Systems; reading it failed: {error}") from None


def _check(path: Path) -> None:
    if not path.is_file():
        raise bad("path", str(path), "an existing file")
    if path.suffix in REPORTS:
        raise bad("path", str(path), f"an export: run `nsys export --type sqlite {path.name}` and load what it writes")
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    if not sniff(head):
        found = "another kind of file" if head else "empty"
        raise bad("path", str(path), f"an SQLite database that `nsys export --type sqlite` wrote; this one is {found}")


def _trace(path: Path, export: Export) -> Trace:
    if not any(map(export.has, (KERNEL, COPY, FILL, GRAPH, CALL))):
        raise bad("path", str(path), "CUDA activity in the export: profile with `nsys profile --trace=cuda,nvtx`")
    tables = {"activities": _activities(export), "launches": [_calls(export)], "annotations": [_ranges(export)]}
    _find_processes(tables["activities"], tables["launches"][0])
    _find_devices(export, tables["activities"])
    processes = np.unique(np.concatenate([part["pid"] for parts in tables.values() for part in parts]))
    raw, events = {table: Raw(table) for table in COLUMNS}, np.zeros(len(processes), np.int64)
    for table, parts in tables.items():
        for part in parts:
            capture = np.searchsorted(processes, part["pid"])
            events += np.bincount(capture, minlength=len(processes))
            raw[table].add(**part, capture=capture)
    captures = [
        {
            "file": path.name if len(processes) == 1 else f"{path.name}, process {'unknown' if pid < 0 else pid}",
            "rank": rank,
            "stage": "",
            "events": int(events[rank]),
        }
        for rank, pid in enumerate(processes)
    ]
    return assemble(str(path), "nsys", raw, captures, _meta(export), export.problems)


def _activities(export: Export) -> list[dict[str, Any]]:
    """What ran on the GPUs, in parts: kernels, copies, fills, and graphs that were traced as a whole."""
    names = next((name for name in ("demangledName", "shortName", "mangledName") if export.has(KERNEL, name)), "")
    kernels = export.events(KERNEL, **_ON_GPU, text=names or "name")
    kernels |= {"name": _named(export, kernels.pop("text"), "unnamed kernel"), "engine": "kernel"}

    kinds = ("srcKind", "dstKind")
    copies = export.events(COPY, **_ON_GPU, kind="copyKind", source=kinds[0], target=kinds[1])
    ways = _COPIES | {
        key: "to".join(word[0] for word in re.split(r"-to-", label) if word)
        for key, label in export.pairs("ENUM_CUDA_MEMCPY_OPER", "id", "label").items()
        if re.fullmatch(r"\w+-to-\w+", str(label))
    }
    memories = export.pairs("ENUM_CUDA_MEM_KIND", "id", "label")
    ends = zip(*(copies.pop(key) for key in ("kind", "source", "target")), strict=True)
    copies |= {"name": [_copy_name(ways, memories, *each) for each in ends], "engine": "memcpy"}

    fills = export.events(FILL, **_ON_GPU, memory="memKind")
    fills |= {"name": [f"Memset ({memories.get(kind, 'Unknown')})" for kind in fills.pop("memory")], "engine": "memset"}

    graphs = export.events(GRAPH, **_ON_GPU)
    count = len(graphs["ts_us"])
    graphs |= {"name": ["CUDA graph replay"] * count, "engine": "kernel"}
    graphs["graph"] = np.maximum(graphs["graph"], 0)
    if count:
        how = "collect with --cuda-graph-trace=node to see their kernels"
        export.problems.append(Problem(f"{count:,} CUDA graph replays were traced as a whole: {how}"))

    for part in (kernels, copies, fills):
        node = part["node"]  # the graph's id stands above the node's
        part["graph"] = np.where(node > 0, np.maximum(part["graph"], node >> 32), part["graph"])
    return [kernels, copies, fills, graphs]


def _copy_name(ways: dict, memories: dict, kind: int, source: int, target: int) -> str:
    """Kineto's name for a copy, "Memcpy HtoD (Pinned -> Device)", so that both profilers' traces compare."""
    way = ways.get(kind, "Unknown")
    known = source in memories and target in memories
    return f"Memcpy {way} ({memories[source]} -> {memories[target]})" if known else f"Memcpy {way}"


def _calls(export: Export) -> dict[str, Any]:
    calls = export.events(CALL, **_ON_CPU, correlation="correlationId", text="nameId")
    return calls | {"name": _named(export, calls.pop("text"), "unnamed call", lambda name: _CALL_VERSION.sub("", name))}


def _ranges(export: Export) -> dict[str, Any]:
    """NVTX ranges; a range's name stands in its row, or once in StringIds when the program registered it."""
    table = "NVTX_EVENTS"
    only = _RANGES if export.has(table, "eventType") else "1"
    ranges = export.events(table, only, **_ON_CPU, text="textId")
    registered = _named(export, ranges.pop("text"), "")
    own = export.texts(table, "text", only) if export.has(table) else []
    return ranges | {"name": [text or name for text, name in zip(own, registered, strict=True)]}


def _named(export: Export, ids: np.ndarray, unknown: str, clean: Callable[[str], str] = str) -> np.ndarray:
    """The texts of ids, each looked up once: an object array of str."""
    distinct, place = np.unique(ids, return_inverse=True)
    names = [clean(str(export.strings.get(key, unknown))) for key in distinct.tolist()]
    return np.array(names, dtype=object)[place]


def _find_processes(activities: list[dict[str, Any]], calls: dict[str, Any]) -> None:
    """Old exports do not say which process an activity is of: then the one call of its correlation id does."""
    if all((part["pid"] >= 0).all() for part in activities):
        return
    owners: dict[int, int] = {}
    for correlation, pid in set(zip(calls["correlation"].tolist(), calls["pid"].tolist(), strict=True)):
        owners[correlation] = pid if owners.setdefault(correlation, pid) == pid else UNKNOWN
    for part in activities:
        found = np.array([owners.get(correlation, UNKNOWN) for correlation in part["correlation"].tolist()], np.int64)
        part["pid"] = np.where(part["pid"] < 0, found, part["pid"])


def _find_devices(export: Export, activities: list[dict[str, Any]]) -> None:
    """The machine's numbers for GPUs: a process that sees only one of them calls it 0."""
    rows = export.rows("TARGET_INFO_CUDA_DEVICE", "pid", "cudaId", "gpuId")
    known = [row for row in rows if all(isinstance(value, int) for value in row)]
    for part in activities:
        own = part["device"].copy()
        for pid, cuda, gpu in known:
            part["device"] = np.where((part["pid"] == pid) & (own == cuda), gpu, part["device"])


def _meta(export: Export) -> dict[str, Any]:
    about = export.pairs("META_DATA_EXPORT", "name", "value")
    version = about.get("EXPORT_PRODUCT_VERSION")
    return {
        "producer": f"Nsight Systems {version}" if version else "Nsight Systems",
        "devices": {key: str(name) for key, name in export.pairs("TARGET_INFO_GPU", "id", "name").items()},
    }
