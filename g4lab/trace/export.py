"""Results to files: a frame as CSV or parquet, and a trace's tables and figures as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import env
from g4lab.errors import bad

if TYPE_CHECKING:
    import pandas as pd

    from g4lab.trace.model import Trace
    from g4lab.trace.result import Result

SUFFIXES = (".csv", ".parquet")


def save(frame: pd.DataFrame, path: Path | str) -> None:
    """Write a frame with its index to .csv (numbers as they are) or .parquet. Raises BadInput for another suffix."""
    path = Path(path)
    if path.suffix == ".csv":
        env.atomic_write(path, frame.to_csv())
    elif path.suffix == ".parquet":
        import pandas as pd

        with env.atomic_file(path) as file:
            pd.DataFrame(frame).to_parquet(file)
    else:
        raise bad("path", str(path), "a name that ends in " + " or ".join(SUFFIXES))


def page(path: Path | str, title: str, traces: Sequence[Trace], results: Sequence[Result]) -> None:
    """Write one HTML file with every result's figure and table, and what was lost in reading the traces."""
    from jinja2 import Environment, StrictUndefined

    from g4lab.trace.result import table_html

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        resources.files("g4lab.trace").joinpath("export.html.j2").read_text("utf-8")
    )
    parts = [
        {
            "title": result.title,
            "provenance": " · ".join(result.provenance),
            "figure": figure_png(result) if len(result) else None,
            "table": table_html(result, 200),
            "more": max(len(result) - 200, 0),
        }
        for result in results
    ]
    env.atomic_write(path, template.render(title=title, traces=traces, parts=parts))


def figure_png(result: Result) -> str:
    """A result's figure as base64 of a PNG."""
    import matplotlib.pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("agg")  # no window, on a machine with a screen or without
    figure = result.plot()
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=150)
    plt.close(figure)
    plt.switch_backend(backend)
    return base64.b64encode(held.getvalue()).decode()
