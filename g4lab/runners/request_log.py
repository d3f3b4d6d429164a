"""What a benchmark's client measured of each request, and a file that keeps it: percentiles come from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from g4lab import env

if TYPE_CHECKING:
    import pandas as pd

    from g4lab.runners.comparison import Visit

COLUMNS = ("side", "round", "position", "request", "input_len", "output_len", "ttft_ms", "tpot_ms", "e2e_ms", "itl_ms")


class Request(NamedTuple):
    """One request that succeeded, as its client saw it: tokens, ms to the first token, ms between those after it."""

    input_len: int
    output_len: int
    ttft_ms: float
    itl_ms: tuple[float, ...] = ()

    @property
    def e2e_ms(self) -> float:
        """From sending to the last token."""
        return self.ttft_ms + sum(self.itl_ms)

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None for a single token."""
        return sum(self.itl_ms) / (self.output_len - 1) if self.output_len > 1 else None


def requests_of(details: Mapping[str, Any]) -> tuple[Request, ...]:
    """From the lists that sglang.bench_serving writes with --output-details (seconds), the requests that succeeded."""
    lists = [details.get(name, ()) for name in ("input_lens", "output_lens", "ttfts", "itls")]
    errors = details.get("errors") or repeat(None, len(lists[0]))
    return tuple(
        Request(given, answered, 1e3 * first, tuple(1e3 * gap for gap in gaps))
        for given, answered, first, gaps, error in zip(*lists, errors, strict=True)
        if not error
    )


def frame(visits: Iterable[Visit]) -> pd.DataFrame:
    """One row a request of the visits, with COLUMNS; `request` is its number within its visit, in order of sending."""
    import pandas as pd

    rows = [
        (v.side, v.round, v.position, i, r.input_len, r.output_len, r.ttft_ms, r.tpot_ms, r.e2e_ms, list(r.itl_ms))
        for v in visits
        for i, r in enumerate(v.result.requests)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def save(requests: pd.DataFrame, path: Path | str) -> Path:
    """Write a frame of requests to a Parquet file, whole or not at all; pandas.read_parquet reads it."""
    with env.atomic_file(path) as file:
        requests.to_parquet(file, index=False)
    return Path(path)
