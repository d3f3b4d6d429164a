"""CUDA-graph replays: which kernels came from one, and which operator captured each of its nodes.

A replay is one call (cudaGraphLaunch), and all its kernels carry that call's correlation number; newer profilers also
write a graph id and a node id. The graph's capture is a stretch between cudaStreamBeginCapture and
cudaStreamEndCapture on one thread; launches inside it run nothing, and each becomes a node. Node ids grow in the order
of the capture, so a capture with as many launches as a graph has nodes names the operator of every node.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

REPLAY = re.compile(r"(cuda|cu|hip)GraphLaunch")
LAUNCH = re.compile(r"(cuda|cu|hip)\w*(Launch(Kernel|CooperativeKernel)|Memcpy|Memset)\w*")
_BEGIN = re.compile(r"(cuda|cu|hip)StreamBeginCapture")
_END = re.compile(r"(cuda|cu|hip)StreamEndCapture")


def matching(names: pd.Series, pattern: re.Pattern) -> np.ndarray:
    """bool [n]: rows of a categorical text column that the pattern matches at their start."""
    hits = [bool(pattern.match(name)) for name in names.cat.categories]
    return np.append(hits, False).astype(bool)[names.cat.codes]


def captured_operators(launches: pd.DataFrame, launch_op: np.ndarray) -> list[np.ndarray]:
    """Rows of operators, by capture of a graph: for each launch inside it, in order, the operator around it (-1 none).

    launch_op: int64 [n], the operator around every row of `launches`.
    """
    begins, ends = matching(launches["name"], _BEGIN), matching(launches["name"], _END)
    does_launch = matching(launches["name"], LAUNCH)
    found = []
    keys = launches[["capture", "pid", "tid"]]
    for row in np.flatnonzero(begins):
        same = (keys == keys.iloc[row]).all(axis=1).to_numpy()
        start = launches["ts_us"].iat[row]
        closing = launches["ts_us"][same & ends & (launches["ts_us"] > start).to_numpy()]
        if len(closing):
            inside = same & does_launch & launches["ts_us"].between(start, closing.min()).to_numpy()
            found.append(launch_op[np.flatnonzero(inside)[np.argsort(launches["ts_us"].to_numpy()[inside])]])
    return found


def attribute(replays: pd.DataFrame, captured: list[np.ndarray]) -> np.ndarray:
    """int64 [n]: the operator of each kernel of a replay, -1 where no capture in the trace fits its graph.

    replays: activities of replays with columns graph, node, correlation, capture, ts_us. A graph whose node count fits
    no capture, or several with different operators, stays without.
    """
    op = np.full(len(replays), -1)
    if not captured:
        return op
    replays = replays.reset_index(drop=True)
    for _, one in replays.groupby(["capture", "correlation"]):
        fits = {tuple(ops) for ops in captured if len(ops) == len(one)}
        if len(fits) == 1:
            order = one.sort_values(["node", "ts_us"]).index
            op[order] = np.array(fits.pop())
    return op
