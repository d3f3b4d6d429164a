"""`load`: any trace, from a file, an open file or a profiler's folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from g4lab.errors import bad
from g4lab.trace import ncu, nsys
from g4lab.trace.assembly import assemble
from g4lab.trace.chrome import read_chrome
from g4lab.trace.model import Problem, Trace
from g4lab.trace.raw import COLUMNS, Raw

_RANK = re.compile(r"\b(?:TP|rank)[-_]?(\d+)", re.IGNORECASE)
_STAGE = re.compile(r"-(EXTEND|DECODE)\b")
_WANTED = "a PyTorch profiler trace (.json, .json.gz), an Nsight Systems export (.sqlite), an Nsight Compute .csv"


def load(source: str | Path | BinaryIO) -> Trace:
    """Read a trace whole, whatever its size, keeping only what the tables of g4lab.trace.model hold.

    Args:
        source: a file, a binary file object, or a folder. Of a folder all PyTorch traces are read, each as a capture of
            its own: SGLang writes one per rank and, profiling by stage, one for EXTEND and one for DECODE.

    Returns:
        The trace. What had to be repaired (a file cut short, events without a time) is in its `problems`, with the
        number of events lost. A trace without GPU activity has an empty table of kernels.

    Raises:
        BadInput: there is no such file, it is empty, or it is no trace.
    """
    if hasattr(source, "read"):
        if not isinstance(source.read(0), bytes):
            raise bad("source", source, "a file opened in binary mode")
        return _chrome([source], str(getattr(source, "name", "file object")))
    path = Path(source)
    if path.is_dir():
        return _chrome(_members(path), str(path))
    if not path.is_file():
        raise bad("source", str(path), f"an existing file or folder: {_WANTED}")
    with path.open("rb") as file:
        head = file.read(4096)
    if nsys.sniff(head):
        return nsys.read_nsys(path)
    if ncu.sniff(head):
        return ncu.read_ncu(path)
    return _chrome([path], str(path))


def _members(folder: Path) -> list[Path]:
    """A folder's traces in order of name, without a merged file that repeats its parts."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".trace.json", ".trace.json.gz")))
    parts = [path for path in files if not path.name.startswith("merged-")]
    if not files:
        raise bad("source", str(folder), "a folder with *.trace.json or *.trace.json.gz files")
    return parts or files


def _chrome(sources: Sequence[Path | BinaryIO], name: str) -> Trace:
    raw = {table: Raw(table) for table in COLUMNS}
    captures, problems, metas = [], [], []
    for index, source in enumerate(sources):
        is_path = isinstance(source, Path)
        file_name = source.name if is_path else Path(name).name
        if is_path:
            with source.open("rb") as file:
                header, events, found = read_chrome(file, file_name, index, raw)
        else:
            header, events, found = read_chrome(source, file_name, index, raw)
        metas.append(header)
        where = f"{file_name}: " if len(sources) > 1 else ""
        problems += [Problem(where + problem.what, problem.lost) for problem in found]
        captures.append(_capture(file_name, header, events))
    return assemble(name, "pytorch", raw, captures, _meta(metas), problems)


def _capture(file_name: str, header: dict[str, Any], events: int) -> dict[str, Any]:
    distributed = header.get("distributedInfo")
    rank = distributed.get("rank") if isinstance(distributed, dict) else None
    named = _RANK.search(file_name)
    if not isinstance(rank, int):
        rank = int(named[1]) if named else 0
    stage = _STAGE.search(file_name)
    return {"file": file_name, "rank": rank, "stage": stage[1] if stage else "", "events": events}


def _meta(headers: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first file says of itself, with the GPUs' names under "devices"."""
    meta = dict(headers[0])
    gpus = meta.pop("deviceProperties", None)
    gpus = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    return meta | {"devices": {gpu.get("id"): gpu.get("name") for gpu in gpus}}
