"""Columns that grow while a file is read: NumPy arrays a chunk at a time, every name kept once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# What every reader delivers, before anything is joined. Activities: what ran on a GPU; `engine` is "kernel", "memcpy"
# or "memset", `pid` the process whose launches carry the same correlation numbers (-1 where a file holds one process),
# `graph` a CUDA graph's id and `node` the id of the kernel's node in it.
COLUMNS = {
    "activities": {
        **dict.fromkeys(("name", "engine"), "text"),
        **dict.fromkeys(("ts_us", "dur_us"), np.float64),
        **dict.fromkeys(("stream", "device", "correlation", "graph", "node", "pid", "capture"), np.int64),
    },
    "operators": {
        "name": "text",
        **dict.fromkeys(("ts_us", "dur_us"), np.float64),
        **dict.fromkeys(("pid", "tid", "capture"), np.int64),
    },
    "launches": {
        "name": "text",
        **dict.fromkeys(("ts_us", "dur_us"), np.float64),
        **dict.fromkeys(("correlation", "pid", "tid", "capture"), np.int64),
    },
    "annotations": {
        "name": "text",
        **dict.fromkeys(("ts_us", "dur_us"), np.float64),
        **dict.fromkeys(("pid", "tid", "capture"), np.int64),
    },
}


class Raw:
    """One table of COLUMNS while it grows."""

    def __init__(self, table: str):
        self._kinds = COLUMNS[table]
        self._codes: dict[str, dict[str, int]] = {key: {} for key, kind in self._kinds.items() if kind == "text"}
        self._parts: dict[str, list[np.ndarray]] = {key: [] for key in self._kinds}

    def add(self, **columns: Sequence[Any] | str | float) -> None:
        """Append rows: a sequence for every column, or one value for all rows; `ts_us` gives their number."""
        rows = len(columns["ts_us"])
        for key, kind in self._kinds.items():
            values = columns[key]
            if kind == "text":
                values = self._coded(key, [values] if isinstance(values, str) else values)
                kind = np.int32
            values = np.asarray(values, kind)
            self._parts[key].append(values if len(values.shape) and len(values) == rows else np.full(rows, values))

    def _coded(self, key: str, names: Sequence[str]) -> list[int]:
        codes = self._codes[key]
        for name in dict.fromkeys(names):  # in order: the same file gives the same categories
            codes.setdefault(name, len(codes))
        return [codes[name] for name in names]

    def columns(self) -> dict[str, Any]:
        """The finished columns: arrays, and categoricals for text. The table is empty afterwards."""
        import pandas as pd

        done = {}
        for key, kind in self._kinds.items():
            parts, self._parts[key] = self._parts[key], []
            dtype = np.int32 if kind == "text" else kind
            done[key] = np.concatenate([np.empty(0, dtype), *parts])
            if kind == "text":
                done[key] = pd.Categorical.from_codes(done[key], pd.Index(list(self._codes[key]), dtype="str"))
        return done
