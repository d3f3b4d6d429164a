"""Named loads for serving comparisons, from scenarios.csv: prompts, lengths, arrivals, and who measured with them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from g4lab.errors import bad

if TYPE_CHECKING:
    import pandas as pd


class Scenario(NamedTuple):
    """A load: requests, tokens of a prompt and of an answer, requests/s (inf: all at once) and how many in flight."""

    name: str
    num_prompts: int
    input_len: int
    output_len: int
    request_rate: float
    max_concurrency: int
    source: str

    def arguments(self) -> dict[str, Any]:
        """As arguments of `ab`."""
        return {
            "num_prompts": self.num_prompts,
            "input_len": self.input_len,
            "output_len": self.output_len,
            "client": {"request_rate": self.request_rate, "max_concurrency": self.max_concurrency},
        }


def scenarios() -> dict[str, Scenario]:
    """Every scenario by its name."""
    with (Path(__file__).parent / "scenarios.csv").open(newline="") as file:
        rows = [
            Scenario(name, *map(int, row[:3]), float(row[3]), int(row[4]), row[5])
            for name, *row in list(csv.reader(file))[1:]
        ]
    return {row.name: row for row in rows}


def scenario(name: str) -> Scenario:
    """One scenario. Raises BadInput for a name that there is not."""
    found = scenarios()
    if name not in found:
        raise bad("scenario", name, "one of " + ", ".join(found))
    return found[name]


def table() -> pd.DataFrame:
    """One row a scenario, its name as the index."""
    import pandas as pd

    return pd.DataFrame(scenarios().values()).set_index("name")
