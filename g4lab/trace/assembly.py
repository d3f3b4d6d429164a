"""From raw tables to a trace: kernels joined with their launches, launches with operators, everything with steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from g4lab.trace import families, graphs
from g4lab.trace.model import Problem, Trace, frame
from g4lab.trace.nesting import Nesting
from g4lab.trace.raw import Raw
from g4lab.trace.steps import assign, find_steps


def assemble(
    source: str,
    format: str,
    raw: dict[str, Raw],
    captures: Sequence[dict[str, Any]],
    meta: dict[str, Any],
    problems: list[Problem],
) -> Trace:
    """Join the raw tables (raw.COLUMNS, all four) of any reader into a Trace. captures: rows of model.CAPTURES."""
    columns = {table: each.columns() for table, each in raw.items()}
    annotations = frame("annotations", columns["annotations"])
    steps = find_steps(annotations)
    stages = [capture["stage"] for capture in captures]

    operators, launches = columns["operators"], columns["launches"]
    for table in (operators, launches):
        table |= assign(table["ts_us"], table["capture"], steps, stages)
    thread = _threads(operators, launches)
    nesting = Nesting(operators["ts_us"], operators["dur_us"], thread[: len(operators["ts_us"])])
    if nesting.overlaps:
        what = f"{nesting.overlaps:,} operators overlap without nesting; the time they share counts once"
        problems = [*problems, Problem(what)]
    operators["parent"] = nesting.parent
    operators["self_us"] = np.maximum(operators["dur_us"] - nesting.inside_us, 0)
    operators["family"] = _relabel(operators["name"], lambda names: families.classify(names, "operator"))
    launch_op = nesting.innermost(launches["ts_us"], thread[len(operators["ts_us"]) :])

    launch_frame = frame("launches", launches)
    kernels = _kernels(columns["activities"], launch_frame, launch_op, operators["name"], steps, stages)
    return Trace(
        source=source,
        format=format,
        kernels=kernels.sort_values(["capture", "ts_us"], kind="stable", ignore_index=True),
        operators=frame("operators", operators),
        launches=launch_frame,
        annotations=annotations,
        steps=steps,
        captures=frame("captures", {key: [row[key] for row in captures] for key in captures[0]}),
        meta=meta,
        problems=problems,
    )


def _kernels(
    activities: dict[str, Any],
    launches: pd.DataFrame,
    launch_op: np.ndarray,
    op_names: pd.Categorical,
    steps: pd.DataFrame,
    stages: list[str],
) -> pd.DataFrame:
    row = _launch_rows(activities, launches)
    known = row >= 0
    took = {key: np.append(launches[f"{key}_us"].to_numpy(), np.nan)[row] for key in ("ts", "dur")}
    op = np.append(launch_op, -1)[row]

    by_graph = np.append(graphs.matching(launches["name"], graphs.REPLAY), False)[row]
    by_graph |= activities["graph"] > 0
    if by_graph.any():
        keys = ("graph", "node", "correlation", "capture", "ts_us")
        replays = pd.DataFrame({key: activities[key][by_graph] for key in keys})
        op[by_graph] = graphs.attribute(replays, graphs.captured_operators(launches, launch_op))

    # Work belongs to the step that launched it; where the launch is not in the trace, to the step it ran in.
    moment = np.where(known, took["ts"], activities["ts_us"])
    family = _relabel(activities["name"], lambda names: families.classify(names, "kernel"))
    copied = np.asarray(activities["engine"]) != "kernel"
    kind = np.where(copied, "memory", np.where(np.asarray(family) == "all-reduce", "communication", "compute"))
    columns = {
        **{key: activities[key] for key in ("name", "ts_us", "dur_us", "stream", "device", "correlation", "capture")},
        "family": family,
        "kind": pd.Categorical(kind),
        "launch_ts_us": took["ts"],
        "launch_dur_us": took["dur"],
        "queue_us": activities["ts_us"] - (took["ts"] + took["dur"]),
        "op": pd.Categorical.from_codes(np.append(op_names.codes, -1)[op], op_names.categories),
        "op_id": op,
        "graph": np.where(by_graph, np.maximum(activities["graph"], 0), -1),
        **assign(moment, activities["capture"], steps, stages),
    }
    return frame("kernels", columns)


def _launch_rows(activities: dict[str, Any], launches: pd.DataFrame) -> np.ndarray:
    """int64 [n]: the row of `launches` that launched each activity; -1 where it is not in the trace."""
    row = np.full(len(activities["ts_us"]), -1)
    processes = pd.DataFrame({key: activities[key] for key in ("capture", "pid")})
    for (capture, pid), members in processes.groupby(["capture", "pid"]).indices.items():
        theirs = (launches["capture"] == capture) & (launches["correlation"] >= 0)
        theirs &= (launches["pid"] == pid) | (pid < 0)
        calls = launches.loc[theirs, "correlation"].drop_duplicates()
        found = pd.Index(calls).get_indexer(activities["correlation"][members])
        row[members] = np.append(calls.index.to_numpy(), -1)[found]
    return row


def _threads(*tables: dict[str, Any]) -> np.ndarray:
    """int64: a number for every thread of every process and capture, over all tables in a row."""
    number = np.zeros(sum(len(table["ts_us"]) for table in tables), np.int64)
    for key in ("capture", "pid", "tid"):
        codes, values = pd.factorize(np.concatenate([table[key] for table in tables]))
        number = number * max(1, len(values)) + codes
    return number


def _relabel(names: pd.Categorical, label) -> pd.Categorical:
    """The names' labels; `label` is called once, with the distinct names."""
    codes, labels = pd.factorize(np.array(label(list(names.categories)), dtype=object))
    return pd.Categorical.from_codes(codes[names.codes] if len(codes) else names.codes, list(labels))
