"""What a loaded trace is: a few tables, where they came from, and what was lost on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PHASES = ("prefill", "decode", "verify", "draft", "idle", "unknown")
KINDS = ("compute", "communication", "memory")

# Column -> dtype of each table. Text columns are categoricals: a trace repeats a few hundred names.
KERNELS = {
    "name": "category",
    "family": "category",  # families.csv; "other" where no rule matches
    "kind": "category",  # one of KINDS; memory is a copy or a fill by the copy engines, not a copy kernel
    "ts_us": "float64",  # start, on the file's clock
    "dur_us": "float64",
    "stream": "int64",  # -1 where the file does not say
    "device": "int64",  # -1 where the file does not say
    "correlation": "int64",  # of the launch; -1 none
    "launch_ts_us": "float64",  # start of the runtime call that launched it; NaN where that call is not in the trace
    "launch_dur_us": "float64",
    "queue_us": "float64",  # from the end of that call to the kernel's start; negative where it started sooner
    "op": "category",  # innermost CPU operator around the launch; missing where there is none
    "op_id": "int64",  # its row in `operators`; -1 none
    "graph": "int64",  # CUDA graph id of a replay, 0 where the file has no ids; -1 launched one by one
    "phase": "category",  # one of PHASES
    "step": "int64",  # row in `steps`; -1 outside any
    "capture": "int64",  # row in `captures`
}
OPERATORS = {
    "name": "category",
    "family": "category",
    "ts_us": "float64",
    "dur_us": "float64",
    "self_us": "float64",  # without the operators called inside it
    "pid": "int64",
    "tid": "int64",
    "parent": "int64",  # row in `operators`; -1 none
    "phase": "category",
    "step": "int64",
    "capture": "int64",
}
LAUNCHES = {  # every runtime or driver call in the trace, synchronisations too
    "name": "category",
    "ts_us": "float64",
    "dur_us": "float64",
    "correlation": "int64",
    "pid": "int64",
    "tid": "int64",
    "phase": "category",
    "step": "int64",
    "capture": "int64",
}
ANNOTATIONS = {  # record_function ranges and ProfilerStep marks, seen from the CPU
    "name": "category",
    "ts_us": "float64",
    "dur_us": "float64",
    "pid": "int64",
    "tid": "int64",
    "capture": "int64",
}
STEPS = {  # forward passes: SGLang's step[...] ranges, else ProfilerStep#n, else g4lab's own marks
    "name": "str",
    "phase": "category",
    "ts_us": "float64",
    "dur_us": "float64",
    "batch": "int64",  # sequences; -1 unknown
    "tokens": "int64",  # tokens computed in the step, draft tokens included; -1 unknown
    "pid": "int64",
    "tid": "int64",
    "capture": "int64",
}
CAPTURES = {  # one profiler session: a file, or one of a folder's files
    "file": "str",
    "rank": "int64",
    "stage": "str",  # "" or what the file's name says: EXTEND, DECODE
    "events": "int64",  # events in the file
}
TABLES = {
    "kernels": KERNELS,
    "operators": OPERATORS,
    "launches": LAUNCHES,
    "annotations": ANNOTATIONS,
    "steps": STEPS,
    "captures": CAPTURES,
}


@dataclass(frozen=True)
class Problem:
    """Something that was wrong with a file and repaired. lost: events dropped because of it, at least that many."""

    what: str
    lost: int = 0


@dataclass
class Trace:
    """A trace's tables (columns: TABLES), all times in microseconds on the file's clock.

    Attributes:
        source: the file or folder. format: "pytorch", "nsys" or "ncu".
        kernels: a row for each GPU activity, copies and fills included, in order of start; empty without a GPU.
        operators: a row for each CPU operator.
        meta: what the file says of itself: device names, world size, profiler options, producer.
        problems: what was repaired while reading, with counts.
    """

    source: str
    format: str
    kernels: pd.DataFrame
    operators: pd.DataFrame
    launches: pd.DataFrame
    annotations: pd.DataFrame
    steps: pd.DataFrame
    captures: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def has_gpu(self) -> bool:
        """Whether the trace holds any GPU activity."""
        return not self.kernels.empty

    @property
    def lost(self) -> int:
        """Events known to be lost, over all problems."""
        return sum(problem.lost for problem in self.problems)

    def __repr__(self) -> str:
        return (
            f"Trace({self.source!r}, {self.format}, {len(self.kernels)} kernels, {len(self.operators)} operators, "
            f"{len(self.steps)} steps, {len(self.problems)} problems)"
        )


def frame(table: str, columns: dict[str, Any] | None = None) -> pd.DataFrame:
    """A table of TABLES from columns (arrays or lists), with its dtypes; absent integers are -1, floats NaN.

    `columns` may leave columns out; None makes an empty table.
    """
    import numpy as np
    import pandas as pd

    columns = columns or {}
    rows = len(next(iter(columns.values()))) if columns else 0
    missing = {"int64": -1, "float64": np.nan, "category": None, "str": ""}
    made = {}
    for name, dtype in TABLES[table].items():
        values = columns[name] if name in columns else np.full(rows, missing[dtype], object if dtype == "str" else None)
        made[name] = pd.Series(values).astype(dtype)
    return pd.DataFrame(made)
