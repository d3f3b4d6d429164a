"""Which blocks of keys a tile of queries goes through, and what it does with each: our kernel's rules and SGLang's.

Plain Python beside the kernels; tests/test_extend_blocks.py counts what both kernels really compute. Key positions run
through the prefix, then through the new tokens. For one sequence, causal, without a custom mask, without splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from g4lab.tuning.extend_shapes import BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from g4lab.kernels.extend_tiles import ExtendTile
    from g4lab.tuning.extend_shapes import ExtendShape

SKIPPED, MASKED, INTERIOR = "skipped", "masked", "interior"


class Run(NamedTuple):
    """`count` blocks of one kind, one after another, over the keys `first` to `end` - 1. Skipped ones are visited: the
    loop comes by, finds that no row sees them and branches around the loads. Interior ones have no masks."""

    kind: str
    first: int
    end: int
    count: int


class QueryTile(NamedTuple):
    """The queries `first` to `last` of a sequence (of its new tokens), and the keys that their tile goes through."""

    first: int
    last: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Blocks:
    """All tiles of one sequence and KV head: `tiles`, and how many `copies` of each there are (SGLang launches one for
    every query head). block_m, block_n: rows and keys of a block."""

    tiles: tuple[QueryTile, ...]
    copies: int
    block_m: int
    block_n: int

    def count(self, *kinds: str) -> int:
        """Blocks of these kinds (all, if none is named), over all tiles and copies."""
        kinds = kinds or (SKIPPED, MASKED, INTERIOR)
        return self.copies * sum(run.count for tile in self.tiles for run in tile.runs if run.kind in kinds)


def ours(extend: int, prefix: int, window: int | None, group: int, tile: ExtendTile) -> Blocks:
    """g4lab.kernels.extend_kernel: rows are (token, query head), blocks begin at the first key that a row sees."""
    size, rows = tile.block_n, extend * group
    tiles = []
    for row in range(0, rows, tile.block_m):
        first_token, last_token = row // group, min((row + tile.block_m - 1) // group, extend - 1)
        last, full_last = prefix + last_token + 1, prefix + first_token + 1
        first = 0 if window is None else max(prefix + first_token - window, 0)
        full_first = 0 if window is None else max(prefix + last_token - window, 0)
        end = min(last, prefix)
        runs = _runs(first, end, full_first, end, size) + _runs(max(first, prefix), last, full_first, full_last, size)
        tiles.append(QueryTile(first_token, last_token, runs))
    return Blocks(tuple(tiles), 1, tile.block_m, size)


def _runs(first: int, last: int, full_first: int, full_last: int, size: int) -> tuple[Run, ...]:
    """The blocks of keys first..last-1, of which full_first..full_last-1 are seen by every row: `_blocks` there."""
    before = _cdiv(min(full_first, last) - first, size)
    interior = first + before * size
    count = max(min(full_last, last) - interior, 0) // size
    rest = interior + count * size
    runs = (
        Run(MASKED, first, min(interior, last), before),
        Run(INTERIOR, interior, rest, count),
        Run(MASKED, rest, last, _cdiv(last - rest, size)),
    )
    return tuple(run for run in runs if run.count)


def sglang(extend: int, prefix: int, window: int | None, group: int, tile: ExtendTile) -> Blocks:
    """SGLang 0.5.21's `_fwd_kernel`: rows are tokens of one head, both loops begin at their first key, every block that
    is computed is masked."""
    size, tiles = tile.block_n, []
    for token in range(0, extend, tile.block_m):
        end = min(token + tile.block_m, extend)
        seen = 0 if window is None else max(prefix + token - window, 0)  # the first key that the tile's first row sees
        runs = _skipping(0, prefix, seen, size) + _skipping(prefix, prefix + end, seen, size)
        tiles.append(QueryTile(token, end - 1, runs))
    return Blocks(tuple(tiles), group, tile.block_m, size)


def _skipping(first: int, end: int, seen: int, size: int) -> tuple[Run, ...]:
    """Blocks of the keys first..end-1, skipped where they end before the key `seen`."""
    visited = _cdiv(end - first, size)
    skipped = visited if seen >= end else max(seen - first, 0) // size
    start = min(first + skipped * size, end)
    runs = (Run(SKIPPED, first, start, skipped), Run(MASKED, start, end, visited - skipped))
    return tuple(run for run in runs if run.count)


def work(shape: ExtendShape, tiled: Iterable[tuple[str, ExtendTile]]) -> pd.DataFrame:
    """One row for each (kernel, tile), kernel "ours" or "sglang": what a launch on a shape goes through.

    Columns: shape, kernel, tile, programs, visited, computed and masked (blocks, of all programs), skipped_pct (of the
    visited), rows_pct (rows of the tiles that hold a query), pairs_over_least (query-key pairs multiplied over the
    visible ones) and kv_mb (10^6 bytes of keys and values that programs load, from the L2 or beyond).
    """
    found = []
    for kernel, tile in tiled:
        one = KERNELS[kernel](shape.extend, shape.prefix, shape.window, shape.group, tile)
        found.append({"shape": shape.name, "kernel": kernel, "tile": str(tile), **_totals(shape, one)})
    return pd.DataFrame(found)


KERNELS = {"ours": ours, "sglang": sglang}


def _totals(shape: ExtendShape, one: Blocks) -> dict:
    times = shape.batch * shape.num_kv_heads
    visited, computed = (times * one.count(*kinds) for kinds in ((), (MASKED, INTERIOR)))
    rows = len(one.tiles) * one.copies * one.block_m
    pairs = computed * one.block_m * one.block_n
    return {
        "programs": times * len(one.tiles) * one.copies,
        "visited": visited,
        "computed": computed,
        "masked": times * one.count(MASKED),
        "skipped_pct": 100 * (1 - computed / visited),
        "rows_pct": 100 * shape.extend * shape.group / rows,
        "pairs_over_least": pairs / (shape.pairs * shape.num_q_heads),
        "kv_mb": computed * one.block_n * 2 * shape.head_dim * BYTES[shape.dtype] / 1e6,
    }


def _cdiv(a: int, b: int) -> int:
    return max(-(-a // b), 0)
