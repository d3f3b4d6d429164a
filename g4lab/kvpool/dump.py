"""A bad read or allocation as a file, with all that explains it: numpy's .npz, readable without an engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from g4lab import env
from g4lab.errors import bad
from g4lab.kvpool.sentinel import Allocation, Read, faults

_KINDS = {kind.__name__: kind for kind in (Read, Allocation)}


def save(record: Read | Allocation, path: Path | str) -> Path:
    """Write `record` to `path`, whole or not at all."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in fields.items() if name not in arrays}
    with env.atomic_file(path) as file:
        np.savez_compressed(file, record=json.dumps({"kind": type(record).__name__, **rest}), **arrays)
    return Path(path)


def load(path: Path | str) -> Read | Allocation:
    """The record in a file that save wrote. Raises BadInput for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        rest = json.loads(str(arrays.pop("record")))
        return _KINDS[rest.pop("kind")](**rest, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise bad("dump", str(path), f"a file that the patch kv_sentinel wrote ({error})") from error


def explain(record: Read | Allocation, most: int = 3) -> list[str]:
    """Lines in words: what was read, how large its pool is, and the first `most` faults of each request."""
    found = list(faults(record))
    if isinstance(record, Allocation):
        return [
            f"{record.where}; full pool: slots up to {record.full_rows - 1:,}, "
            f"sliding pool: up to {record.sliding_rows - 1:,}, pages of {record.page_size}",
            *map(str, found[:most]),
            f"{len(found):,} of {2 * len(record.full):,} slots are bad",
        ]
    held = [int(n) for n in np.diff(record.indptr) * record.page_size]
    lines = [
        f"{record.where}: {len(held)} requests read {sum(held):,} keys",
        f"the layer's pool has {record.rows - record.page_size:,} slots, pages of {record.page_size}"
        + (f"; a query attends {record.window:,} keys before it" if record.window is not None else ""),
    ]
    for row in sorted({fault.row for fault in found}):
        mine = [fault for fault in found if fault.row == row]
        lines += map(str, mine[:most])
        if len(mine) > most:
            lines.append(
                f"row {row}: {len(mine):,} of its {held[row]:,} slots are bad, up to position {mine[-1].position:,}"
            )
    return [*lines, f"{len(found):,} of {sum(held):,} slots are bad" if found else "no slot is bad"]
