"""Which interval lies inside which, and which is the innermost around a moment: operators in operators, launches in
operators and in steps."""

from __future__ import annotations

import numpy as np

SLACK_US = 1.0  # old profilers write whole microseconds: a child may stick out of its parent by that much


class Nesting:
    """Intervals of one thread or of several, nested by time.

    parent: int64 [n], index of the innermost interval around each; -1 for none. inside_us: float64 [n], time covered by
    an interval's direct children, never more than it lasts. overlaps: intervals that end after their parent does, by
    more than SLACK_US, which real nesting forbids.
    """

    def __init__(self, start: np.ndarray, dur: np.ndarray, thread: np.ndarray):
        """start, dur: float64 [n] in µs. thread: int64 [n], anything that tells threads apart."""
        # Of two that start together the longer one is outside; of equals the one that comes first in the file.
        self._order = np.lexsort((-dur, start, thread))
        self._start, self._thread = start[self._order], thread[self._order]
        self._end = self._start + dur[self._order]
        self._parent, inside, self.overlaps = _sweep(self._start.tolist(), self._end.tolist(), self._thread.tolist())
        self.parent = np.full(len(start), -1)
        self.parent[self._order] = np.where(self._parent >= 0, self._order[self._parent], -1)
        self.inside_us = np.empty(len(start))
        self.inside_us[self._order] = inside

    def innermost(self, moment: np.ndarray, thread: np.ndarray) -> np.ndarray:
        """Index of the innermost interval around each moment [m] on its thread [m]; -1 for none. NaN lies in none."""
        if not len(self._start):
            return np.full(len(moment), -1)
        at = np.full(len(moment), -1)
        for value in np.unique(thread):
            low, high = np.searchsorted(self._thread, [value, value + 1])
            here = thread == value
            at[here] = low - 1 + np.searchsorted(self._start[low:high], moment[here], side="right")
            at[here & (at < low)] = -1
        at[np.isnan(moment)] = -1
        while (outside := (at >= 0) & (self._end[at] < moment)).any():
            at[outside] = self._parent[at[outside]]
        return np.where(at >= 0, self._order[at], -1)


def _sweep(starts: list[float], ends: list[float], threads: list[int]) -> tuple[np.ndarray, np.ndarray, int]:
    """Parents, time inside, and overlaps of intervals sorted by thread and start."""
    parents, inside = np.full(len(starts), -1), [0.0] * len(starts)
    stack: list[int] = []
    overlaps, thread = 0, None
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if threads[index] != thread:
            stack, thread = [], threads[index]
        while stack and ends[stack[-1]] <= start:
            stack.pop()
        if stack:
            around = stack[-1]
            parents[index] = around
            inside[around] += min(end, ends[around]) - start
            overlaps += end > ends[around] + SLACK_US
        stack.append(index)
    return parents, np.array(inside), overlaps
