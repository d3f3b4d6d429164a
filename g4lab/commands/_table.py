"""How commands print a frame, and an analysis of a trace."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from g4lab.trace import Trace
    from g4lab.trace.result import Result


WIDEST = 14  # columns that a terminal can show


def table(result: Result, rows: int | None = None) -> Table:
    """A result as a rich table with its title and provenance; what is left out (rows, columns) is counted below it."""
    from g4lab.trace.result import cells, text

    names, values = cells(result, rows)
    left_out = {"row": len(result) - len(values), "column": max(len(names) - WIDEST, 0)}
    names = names[:WIDEST]
    drawn = Table(title=Text(result.title, style="bold"), title_justify="left", caption_justify="left")
    notes = [f"{count:,} more {what}{'s' * (count > 1)}" for what, count in left_out.items() if count]
    drawn.caption = Text(" · ".join([*result.provenance, *notes]))
    for place, name in enumerate(names):
        words = any(isinstance(row[place], str) for row in values)
        drawn.add_column(name, justify="left" if words else "right", overflow="fold" if words else "ellipsis")
    for row in values:
        drawn.add_row(*(Text(text(value, name)) for value, name in zip(row, names, strict=False)))
    return drawn


def show(results: Iterable[Result], rows: int | None = 30) -> None:
    """Print results as tables; into a pipe or file as wide as they need."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    for result in results:
        console.print(table(result, rows))


def frame_table(frame: pd.DataFrame) -> Table:
    """Every row and column of a frame as a rich table; what is missing stays empty."""
    drawn = Table(*map(str, frame.columns))
    for row in frame.itertuples(index=False):
        drawn.add_row(*(Text("" if value is None or value != value else str(value)) for value in row))
    return drawn


def losses(trace: Trace) -> list[str]:
    """A line for everything that had to be repaired while reading."""
    return [
        f"repaired: {problem.what}" + (f" ({problem.lost:,} events lost)" if problem.lost else "")
        for problem in trace.problems
    ]
