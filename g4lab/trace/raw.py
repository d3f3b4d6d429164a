"""Columns that grow while a file is read: NumPy arrays a chunk at a time, every name kept once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# What every reader delivers, before anything is joined. Activities: what ran on a GPU; `engine` is "kernel", "memcpy" or
# "memset", `pid` the process whose launches carry the same correlation numbers (-1 where a file holds one process),
# `graph` a CUDA graph's id and `node` the id of the kernel's node in it.
COLUMNS = {
    "activities": (
        ("name", "engine"),
        ("ts_us", "dur_us"),
        ("stream", "device", "correlation", "graph", "node", "pid", "capture"),
    ),
    "operators": (("name",), ("ts_us", "dur_us"), ("pid", "tid", "capture")),
    "launches": (("name",), ("ts_us", "dur_us"), ("correlation", "pid", "tid", "capture")),
    "annotations": (("name",), ("ts_us", "dur_us"), ("pid", "tid", "capture")),
}


class Raw:
    """One table of COLUMNS while it grows."""

    def __init__(self, table: str):
        self._text, self._floats, self._integers = COLUMNS[table]
        self._categories: dict[str, dict[str, int]] = {key: {} for key in self._text}
        self._parts: dict[str, list[np.ndarray]] = {k: [] for k in (*self._text, *self._floats, *self._integers)}

    def add(self, **columns: Iterable[Any]) -> None:
        """Append rows: an iterable for every column, or one value for all rows; `ts_us` gives the number of rows."""
        rows = len(columns["ts_us"])
        for key, parts in self._parts.items():
            values = columns[key]
            if np.isscalar(values):
                values = [values] * rows
            if key in self._text:
                codes = self._categories[key]
                parts.append(np.fromiter((codes.setdefault(v, len(codes)) for v in values), np.int32, rows))
            else:
                parts.append(np.asarray(values, np.float64 if key in self._floats else np.int64))

    def columns(self) -> dict[str, Any]:
        """The finished columns: arrays, and categoricals for text."""
        import pandas as pd

        done = {}
        for key, parts in self._parts.items():
            dtype = np.int32 if key in self._text else np.float64 if key in self._floats else np.int64
            values = np.concatenate(parts) if parts else np.empty(0, dtype)
            parts.clear()
            if key in self._text:
                values = pd.Categorical.from_codes(values, pd.Index(list(self._categories[key]), dtype="str"))
            done[key] = values
        return done
