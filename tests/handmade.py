"""Small traces made by hand, for tests that need to know every number."""

from functools import cache

from g4lab.trace import load
from g4lab.trace.families import classify
from g4lab.trace.model import Trace, frame

loaded = cache(load)  # a real trace once for all tests; they do not change it


def trace(kernels=None, operators=None, steps=None, launches=None, captures=None, **more) -> Trace:
    """A Trace from columns (lists); families follow from names, and what is left out gets the model's default."""
    rows = {"kernels": kernels, "operators": operators}
    for table, domain in (("kernels", "kernel"), ("operators", "operator")):
        if rows[table]:
            columns = dict(rows[table])
            count = len(columns["name"])
            columns.setdefault("family", classify(columns["name"], domain))
            columns.setdefault("phase", ["unknown"] * count)
            columns.setdefault("capture", [0] * count)
            if table == "kernels":
                columns.setdefault("kind", ["compute"] * count)
                columns.setdefault("device", [0] * count)
            else:
                columns.setdefault("self_us", columns["dur_us"])
            rows[table] = columns
    return Trace(
        source=more.pop("source", "handmade.json"),
        format="pytorch",
        kernels=frame("kernels", rows["kernels"]),
        operators=frame("operators", rows["operators"]),
        launches=frame("launches", launches),
        annotations=frame("annotations"),
        steps=frame("steps", steps),
        captures=frame("captures", captures or {"file": ["handmade.json"], "rank": [0], "stage": [""], "events": [0]}),
        **more,
    )
