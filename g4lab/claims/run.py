"""What the notebooks of this run have said so far: their verdicts and their records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import env, records, report

if TYPE_CHECKING:
    import pandas as pd

REPORT = "90_report"  # says no verdict about itself


def notebooks() -> dict[str, tuple[Path, str]]:
    """Name -> executed notebook, and of what: "this run" of `g4lab run`, or "committed" where that has none."""
    found = {path.stem: (path, "committed") for path in sorted(env.checkout("notebooks").glob("*.ipynb"))}
    inside = os.environ.get("G4LAB_RECORDS")  # set by `g4lab run`, which keeps both in one folder
    if inside:
        ran = sorted((Path(inside).parent / "notebooks").glob("*.ipynb"))
        found |= {path.stem: (path, "this run") for path in ran}
    found.pop(REPORT, None)
    return found


def verdicts() -> pd.DataFrame:
    """One row for each verdict that those notebooks have printed: notebook, of, verdict."""
    import pandas as pd

    rows = [
        (name, of, line.partition(":")[2].strip())
        for name, (path, of) in notebooks().items()
        for line in report.verdicts(path)
    ]
    return pd.DataFrame(rows, columns=["notebook", "of", "verdict"])


def found_records() -> pd.DataFrame:
    """Name, kind and machine of this run's records and of the committed ones, counted."""
    import pandas as pd

    folders = [env.data_dir() / "records", *([records.where()] if records.where().is_dir() else [])]
    rows = [(r.name, r.kind, r.where) for folder in folders for r in records.read(folder).records]
    frame = pd.DataFrame(rows, columns=["record", "kind", "machine"])
    return frame.groupby(["record", "kind", "machine"], as_index=False).size().rename(columns={"size": "lines"})
