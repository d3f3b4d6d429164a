"""SGLang's two-pool allocator in miniature: pages, the full-to-sliding mapping, request rows, and what a step reads.

Page numbers come from the head of a free list; pages of one token go back to its tail, larger ones to its head, as in
SGLang 0.5.21's `SWATokenToKVPoolAllocator`, so that both hand out the same slots for the same operations.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from g4lab.errors import bad
from g4lab.kvpool.sentinel import NO_SLOT, Read, translate


class TwoPools:
    """A full and a sliding pool of whole pages, and the requests in them. Slot and page 0 of each are reserved.

    Args:
        full_tokens, sliding_tokens: slots of the pools, cut down to whole pages.
        window: keys before a query that a sliding layer reads (SGLang's sliding_window_size).

    Raises:
        BadInput: a pool without a page, or a window below 1.
    """

    def __init__(self, full_tokens: int, sliding_tokens: int, window: int, page_size: int = 1) -> None:
        for name, value, least in (
            ("page_size", page_size, 1),
            ("full_tokens", full_tokens, page_size),
            ("sliding_tokens", sliding_tokens, page_size),
            ("window", window, 1),
        ):
            if value < least:
                raise bad(name, value, f"at least {least}")
        self.page_size, self.window = page_size, window
        self.full_rows = (full_tokens // page_size + 1) * page_size
        self.sliding_rows = (sliding_tokens // page_size + 1) * page_size
        self.free_full = deque(range(1, self.full_rows // page_size))
        self.free_sliding = deque(range(1, self.sliding_rows // page_size))
        self.mapping = np.append(np.zeros(self.full_rows, np.int64), NO_SLOT)
        self.rows: dict[int, np.ndarray] = {}  # request -> full slots of its tokens
        self.evicted: dict[int, int] = {}  # request -> tokens whose sliding slots are given back
        self._next = 1  # request 0 is the padding's

    def admit(self, tokens: int) -> int | None:
        """A new request with the slots of `tokens`, or None, and nothing taken, where a pool has too few."""
        request = self._next
        self.rows[request], self.evicted[request] = np.empty(0, np.int64), 0
        if not self.extend(request, tokens):
            del self.rows[request], self.evicted[request]
            return None
        self._next += 1
        return request

    def extend(self, request: int, tokens: int = 1) -> bool:
        """Slots in both pools for `tokens` more (1: a decode step), or False, and nothing taken."""
        row, page = self.rows[request], self.page_size
        new = np.arange(len(row), len(row) + tokens)
        wanted = -(-(len(row) + tokens) // page) - -(-len(row) // page)
        if wanted > min(len(self.free_full), len(self.free_sliding)):
            return False
        full, sliding = ([free.popleft() for _ in range(wanted)] for free in (self.free_full, self.free_sliding))
        if len(row) % page:  # the last page has room yet
            full.insert(0, row[-1] // page)
            sliding.insert(0, self.mapping[row[-1]] // page)
        at = new // page - len(row) // page
        slots = np.array(full, np.int64)[at] * page + new % page
        self.mapping[slots] = np.array(sliding, np.int64)[at] * page + new % page
        self.rows[request] = np.append(row, slots)
        return True

    def slide(self, request: int) -> None:
        """Give back the sliding pages that the next query's window has left."""
        row = self.rows[request]
        end = max(len(row) - self.window, 0) // self.page_size * self.page_size
        self._give_back(row[self.evicted[request] : end])
        self.evicted[request] = max(end, self.evicted[request])

    def reject(self, request: int, tokens: int) -> None:
        """Give back the last `tokens`, drafts that were wrong; a page that still holds a token stays."""
        row = self.rows[request]
        keep = len(row) - tokens
        gone = row[-(-keep // self.page_size) * self.page_size :]
        self._give_back(gone)
        self._put(self.free_full, gone)
        self.rows[request] = row[:keep]

    def free(self, request: int) -> None:
        """End or retract a request: all it holds goes back."""
        row, evicted = self.rows.pop(request), self.evicted.pop(request)
        self._put(self.free_full, row[:evicted])
        self._give_back(row[evicted:])
        self._put(self.free_full, row[evicted:])

    def read(self, requests: list[int], *, layer: int = 0, follows: bool = True) -> Read:
        """What a sliding layer's page table says in a step of one query after the tokens of each of `requests`.

        follows: False for a frozen-KV draft whose backend did not notice that its pool was swapped for the target's
        (pyc96/sglang#6): the table keeps full-pool pages, and the layer reads the sliding pool with them.
        """
        rows = [self.rows[request] for request in requests]
        lens = np.array([len(row) for row in rows], np.int64)
        table = np.zeros((len(rows), max(lens, default=0)), np.int64)
        for i, row in enumerate(rows):
            table[i, : len(row)] = row
        translated = translate(table, self.mapping)
        pages = -(-lens // self.page_size)
        slots = (translated if follows else table)[:, :: self.page_size]
        used = np.arange(slots.shape[1]) < pages[:, None]
        return Read(
            backend="simulated", mode="DRAFT", layer=layer, sliding=True, page_size=self.page_size,
            rows=self.sliding_rows, window=self.window, requests=np.array(requests, np.int64),
            start=np.zeros_like(lens), first_query=lens, indptr=np.append(0, pages.cumsum()),
            entries=slots[used] // self.page_size,
            table=table, translated=translated,
        )  # fmt: skip

    def _give_back(self, slots: np.ndarray) -> None:
        """Free the sliding pages of these full slots, which begin a page; of a last page the unused rest, too."""
        self._put(self.free_sliding, self.mapping[slots])
        whole = np.unique(slots // self.page_size)[:, None] * self.page_size + np.arange(self.page_size)
        self.mapping[whole] = 0

    def _put(self, free: deque, slots: np.ndarray) -> None:
        """The pages of `slots` back into a free list."""
        pages = list(dict.fromkeys((slots // self.page_size).tolist()))
        if self.page_size == 1:
            free.extend(pages)
        else:
            free.extendleft(reversed(pages))
