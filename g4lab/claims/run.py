"""What the notebooks of this run have said so far: where they lie, their verdicts and their records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import env, records, report

if TYPE_CHECKING:
    import pandas as pd

REPORT = "90_report"  # says no verdict about itself


def notebooks() -> Path:
    """Executed notebooks: of the run that $G4LAB_RECORDS belongs to (set by `g4lab run`), else the committed ones."""
    inside = os.environ.get("G4LAB_RECORDS")
    folder = Path(inside).parent / "notebooks" if inside else None
    return folder if folder is not None and folder.is_dir() else env.checkout("notebooks")


def verdicts(folder: Path | None = None) -> pd.DataFrame:
    """One row for each verdict that a notebook of `folder` (default: this run's) has printed: notebook, verdict."""
    import pandas as pd

    files = sorted((folder or notebooks()).glob("*.ipynb"))
    rows = [
        (file.stem, line.partition(":")[2].strip())
        for file in files
        if file.stem != REPORT
        for line in report.verdicts(file)
    ]
    return pd.DataFrame(rows, columns=["notebook", "verdict"])


def found_records() -> pd.DataFrame:
    """Name, kind and machine of this run's records and of the committed ones, counted."""
    import pandas as pd

    folders = [env.data_dir() / "records", *([records.where()] if records.where().is_dir() else [])]
    rows = [(r.name, r.kind, r.where) for folder in folders for r in records.read(folder).records]
    frame = pd.DataFrame(rows, columns=["record", "kind", "machine"])
    return frame.groupby(["record", "kind", "machine"], as_index=False).size().rename(columns={"size": "lines"})
