"""Write a run's HTML report again."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder of `g4lab run`.", show_default="the newest run")
    ] = None,
) -> None:
    """Write the HTML report of a run: every notebook's state, verdicts and figures in one file.

    Examples:

    - `g4lab report`
    - `g4lab report runs/20261121T090000.000000Z`
    """
    from g4lab import records, report
    from g4lab.batch import newest_run

    print(report.write(folder or newest_run(records.runs_dir())))
