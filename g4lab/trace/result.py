"""What every analysis returns: a DataFrame that says what it is, where its numbers come from, and can draw itself."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from g4lab.errors import bad
from g4lab.figures import KINDS
from g4lab.trace.names import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from g4lab.trace.model import Trace

SHOWN_ROWS = 40
_SHARES = ("share", "coverage")  # columns, or starts of columns, that hold fractions of one


class Result(pd.DataFrame):
    """A DataFrame with a title, a provenance and a figure; what is computed from it is a plain DataFrame.

    Attributes:
        title: what the rows are, with the units that the columns' names leave open.
        provenance: (kind, source) as g4lab.figures.stamp takes it, such as ("recorded", "decode.json.gz").
        drawer: makes the figure of this result, or None.
    """

    _metadata = ("title", "provenance", "drawer")

    def __init__(self, data=None, *, title="", provenance=("recorded", "no source named"), drawer=None, **kwargs):
        super().__init__(data, **kwargs)
        if provenance[0] not in KINDS:
            raise bad("provenance", provenance, "(kind, source) with a kind of " + ", ".join(KINDS))
        self.title: str = title
        self.provenance: tuple[str, str] = tuple(provenance)
        self.drawer: Callable[..., Figure] | None = drawer

    @property
    def _constructor(self):
        return pd.DataFrame

    def plot(self, **kwargs) -> Figure:
        """The figure of this result, stamped with its provenance; arguments go to its drawer (g4lab.trace.draw)."""
        if self.drawer is None:
            raise bad("plot", self.title, "a result that has a figure")
        return self.drawer(self, **kwargs)

    def _repr_html_(self) -> str:
        source = html.escape(" · ".join(self.provenance))
        caption = (
            f"<caption style='caption-side:top;text-align:left'><b>{html.escape(self.title)}</b> {source}</caption>"
        )
        table = table_html(self, SHOWN_ROWS)
        more = f"<p>{len(self) - SHOWN_ROWS:,} more rows</p>" if len(self) > SHOWN_ROWS else ""
        return f"<div>{table.replace('<thead>', caption + '<thead>', 1)}{more}</div>"


def provenance(trace: Trace) -> tuple[str, str]:
    """Where a trace's numbers come from: what its reader or runner noted, else ("recorded", its file's name)."""
    return trace.meta.get("provenance") or ("recorded", Path(trace.source).name or trace.source)


def of_trace(trace: Trace, data, *, title: str, drawer: Callable[..., Figure] | None = None) -> Result:
    """A result whose provenance is the trace's."""
    return Result(data, title=title, provenance=provenance(trace), drawer=drawer)


def text(value: object, column: str) -> str:
    """One cell as the tables show it: long names short, fractions as percentages, nothing where a number is missing."""
    if isinstance(value, str):
        return short(value)
    if value is None or value != value:
        return ""
    if column.startswith(_SHARES):
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def cells(frame: pd.DataFrame, rows: int | None = None) -> tuple[list[str], list[list[object]]]:
    """Column names and the rows' raw values, a named index first; `rows`: only the first so many."""
    frame = frame.head(rows) if rows is not None else frame
    named = any(name is not None for name in frame.index.names)
    frame = pd.DataFrame(frame.reset_index() if named else frame)
    return [str(name) for name in frame.columns], frame.astype(object).to_numpy().tolist()


def table_html(frame: pd.DataFrame, rows: int | None = None) -> str:
    """The rows as an HTML table, numbers to the right; a shortened name shows whole when pointed at."""
    names, values = cells(frame, rows)

    def cell(name, value):
        if isinstance(value, str):
            return f"<td style='text-align:left' title='{html.escape(value)}'>{html.escape(text(value, name))}</td>"
        return f"<td style='text-align:right'>{text(value, name)}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(cell, names, row))}</tr>" for row in values)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
