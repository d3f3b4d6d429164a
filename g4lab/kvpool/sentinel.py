"""Is every slot that attention is about to read a slot of the right pool, and the right one? Found before it is read.

The check is arithmetic on index tables: no engine is imported. It has the purpose of the debug traps of pyc96/sglang#3,
which told an asynchronous illegal-address error of a GPU apart from the layer, request and position that caused it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from g4lab.errors import G4LabError

NO_SLOT = -1  # SGLang's mark of a position without a slot; legal in the mapping, not in what attention reads
PADDING = 0  # the request that CUDA graphs pad a batch with; page 0 of each pool is its dummy


class KVIndexError(G4LabError, IndexError):
    """A page table, an index list or the allocator names a slot that its reader must not read."""


@dataclass(frozen=True, eq=False)
class Read:
    """What one attention layer reads in one step, for B requests. All arrays are integers; positions count tokens.

    backend, mode, layer: names for the message; without a layer the request table itself is read. sliding: whether the
    layer's keys are in the sliding pool. page_size: tokens an entry stands for. rows: slots of the layer's pool, its
    reserved page included. window: keys before a query that the layer attends, None for all. requests [B]: rows of the
    request table. start [B]: position of the first entry. first_query [B]: position of the step's first query. indptr
    [B+1], entries [N]: page numbers (slots where page_size is 1) of each request. table [B, C]: the full pool's slot of
    each position. translated [B, C]: the sliding pool's, None where the layer's keys are in the full one.
    """

    backend: str
    mode: str
    layer: int | None
    sliding: bool
    page_size: int
    rows: int
    window: int | None
    requests: np.ndarray
    start: np.ndarray
    first_query: np.ndarray
    indptr: np.ndarray
    entries: np.ndarray
    table: np.ndarray
    translated: np.ndarray | None

    @property
    def where(self) -> str:
        if self.layer is None:
            return f"request table ({self.mode})"
        return f"layer {self.layer} ({'sliding' if self.sliding else 'full'} pool, {self.backend}, {self.mode})"


@dataclass(frozen=True, eq=False)
class Allocation:
    """What one call of a two-pool allocator gave: full [N] slots, and the slots [N] that the mapping has for them."""

    call: str
    page_size: int
    full_rows: int
    sliding_rows: int
    full: np.ndarray
    sliding: np.ndarray

    @property
    def where(self) -> str:
        return f"{self.call} gave {len(self.full)} tokens"


@dataclass(frozen=True)
class Fault:
    """One bad slot: row of the batch and its request (None in an allocation), position, slot seen, slot expected."""

    row: int | None
    request: int | None
    position: int
    value: int
    expected: int | None
    why: str

    def __str__(self) -> str:
        who = f"row {self.row} (request {self.request}) position" if self.row is not None else "token"
        right = f"; expected slot {self.expected:,}" if self.expected not in (None, self.value) else ""
        return f"{who} {self.position:,}: slot {self.value:,}{self.why}{right}"


def translate(table, mapping) -> np.ndarray:
    """The sliding slot of each full slot: mapping[table], and NO_SLOT where `table` lies outside the mapping."""
    table, mapping = host(table), host(mapping)
    inside = (table >= 0) & (table < len(mapping))
    return np.where(inside, mapping[np.where(inside, table, 0)], NO_SLOT)


def host(array) -> np.ndarray:
    """A numpy array of int64 from a torch tensor (of any device), an array or a list."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    return np.asarray(array, dtype=np.int64)


def faults(record: Read | Allocation) -> Iterator[Fault]:
    """Every bad slot of a read or of an allocation, by row and position."""
    return _faults_of_allocation(record) if isinstance(record, Allocation) else _faults_of_read(record)


def _faults_of_read(read: Read) -> Iterator[Fault]:
    counts = np.diff(read.indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    entry = read.entries[read.indptr[0] : read.indptr[-1]]
    step = np.arange(len(entry)) - np.repeat(read.indptr[:-1] - read.indptr[0], counts)
    position = read.start[row] + step * read.page_size
    own = read.table if read.translated is None else read.translated
    expected = own[row, position]

    attended = np.ones(len(entry), bool)
    if read.window is not None:  # a page counts as soon as one of its positions does
        attended = position + read.page_size > read.first_query[row] - read.window
    attended &= read.requests[row] != PADDING
    outside = (entry < 0) | (entry >= -(-read.rows // read.page_size))
    reserved = attended & (entry == 0)
    wrong = attended & (entry != expected // read.page_size)
    for i in np.flatnonzero(outside | reserved | wrong):
        r, p, value = int(row[i]), int(position[i]), int(entry[i]) * read.page_size
        why = _why(read, r, p, value, int(expected[i]), bool(outside[i]))
        yield Fault(r, int(read.requests[r]), p, value, int(expected[i]), why)


def _why(read: Read, row: int, position: int, value: int, expected: int, outside: bool) -> str:
    """What follows "slot 9,120": how it cannot be, and whose it is."""
    own = read.table if read.translated is None else read.translated
    page, said = value // read.page_size, ""
    if outside:
        said = f" of a pool that has {read.rows - read.page_size:,}"
    if value < 0:
        return said + ", the mark of a position without a slot"
    if page == 0:
        lost = ", and the mapping has no other: freed within the window, or never given" if expected == value else ""
        return said + ", the reserved dummy, which keeps no token's key" + lost
    if page == expected // read.page_size:
        return said + f", as the {'request table' if read.translated is None else 'mapping'} says"
    if read.translated is not None and page == read.table[row, position] // read.page_size:
        return said + ", a FULL-pool slot that was never translated"
    owner = np.argwhere(own // read.page_size == page)
    return said + (f", that of row {owner[0][0]} position {owner[0][1]:,}" if len(owner) and not outside else "")


def _faults_of_allocation(given: Allocation) -> Iterator[Fault]:
    for name, slots, rows in (("full", given.full, given.full_rows), ("sliding", given.sliding, given.sliding_rows)):
        outside = (slots < given.page_size) | (slots >= rows)
        twice = np.ones(len(slots), bool)
        twice[np.unique(slots, return_index=True)[1]] = False
        for i in np.flatnonzero(outside | twice):
            usable = f", outside the {name} pool's {given.page_size:,} to {rows - 1:,}"
            why = usable if outside[i] else f", given twice in the {name} pool"
            yield Fault(None, None, int(i), int(slots[i]), None, why)


def message(record: Read | Allocation, found: list[Fault], most: int = 1) -> str:
    """The first `most` faults in words, and how many there are."""
    more = f"; {len(found) - most:,} more" if len(found) > most else ""
    return f"{record.where}: " + "; ".join(map(str, found[:most])) + more
