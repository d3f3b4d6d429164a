"""Tables published by others, with the pull request and commit of every value: data/published/*.csv."""

from typing import TYPE_CHECKING

from g4lab import env
from g4lab.errors import bad

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("case", "condition", "variant", "metric", "unit", "value", "hardware", "pr", "commit", "source")


def tables() -> list[str]:
    """Names of the tables. Raises Unavailable where g4lab is installed without its checkout."""
    return sorted(path.stem for path in (env.data_dir() / "published").glob("*.csv"))


def published(name: str) -> "pd.DataFrame":
    """One table, a row for each value, with the columns of COLUMNS; `value` is a float, the others are text.

    `commit` is an empty text where the source names none.

    Raises:
        BadInput: no such table. Unavailable: g4lab is installed without its checkout.
    """
    import pandas as pd

    if name not in tables():
        raise bad("name", name, "one of " + ", ".join(tables()))
    frame = pd.read_csv(env.data_dir() / "published" / f"{name}.csv", dtype=str, keep_default_na=False)
    return frame.astype({"value": float})


def sources() -> "pd.DataFrame":
    """Every table's pull requests and commits, with the number of values from each."""
    import pandas as pd

    rows = [published(name).assign(table=name) for name in tables()]
    return pd.concat(rows).groupby(["table", "pr", "commit"], as_index=False).size().rename(columns={"size": "values"})


def citation(frame: "pd.DataFrame") -> str:
    """The pull requests of a table in one line, for a figure's provenance badge: "sgl-project/sglang PR #26588"."""
    return ", ".join(sorted({pr.replace("#", " PR #") for pr in frame["pr"]}))
