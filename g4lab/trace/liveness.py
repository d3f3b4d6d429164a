"""Whether a change is alive: the kernels it replaces are gone from a trace, and its own are there."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from g4lab.errors import bad
from g4lab.trace.model import PHASES, Trace
from g4lab.trace.steps import assign


@dataclass(frozen=True)
class Sign:
    """One pattern that was looked for. wanted: "gone" or "present". holds: None where the trace cannot tell."""

    pattern: str
    wanted: str
    calls: int
    total_us: float
    holds: bool | None

    def __str__(self) -> str:
        found = f"{self.calls:,} calls, {self.total_us:,.1f} µs" if self.calls else "no call"
        state = {
            True: "as expected",
            False: "NOT as expected",
            None: "cannot tell: the trace holds nothing of that kind",
        }
        return f"{self.pattern} {self.wanted}: {found}, {state[self.holds]}"


@dataclass(frozen=True)
class Verdict:
    """What `expect` found. alive: every sign holds; a sign that the trace cannot tell is no proof."""

    source: str
    of: str
    signs: tuple[Sign, ...]

    @property
    def alive(self) -> bool:
        """Whether every sign was looked for and holds."""
        return all(sign.holds for sign in self.signs)

    @property
    def reasons(self) -> list[str]:
        """A line for every sign that does not hold; none when alive."""
        return [str(sign) for sign in self.signs if not sign.holds]

    def __str__(self) -> str:
        return f"{'alive' if self.alive else 'NOT proven alive'} by {self.of}: " + "; ".join(map(str, self.signs))

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(str(sign))}</li>" for sign in self.signs)
        word = "alive" if self.alive else "not proven alive"
        return f"<b>{word}</b>, by the {self.of} of {html.escape(self.source)}<ul>{items}</ul>"


def expect(
    trace: Trace, gone: Sequence[str] = (), present: Sequence[str] = (), phases: Sequence[str] | None = None
) -> Verdict:
    """Look for kernels that should be gone from a trace, and for those that should be in it.

    With GPU activity the kernels' names count. Without, the names of CPU operators and of annotations do: an
    interpreted kernel of g4lab leaves an annotation "NAME (interpreted)".

    Args:
        gone, present: regular expressions, searched for anywhere in a name.
        phases: look in the steps of these phases only, so that what samples or drafts between them does not count.

    Raises:
        BadInput: neither is given, a pattern is no regular expression, or there is no such phase.
    """
    if not gone and not present:
        raise bad("gone, present", (gone, present), "at least one pattern")
    if isinstance(gone, str) or isinstance(present, str):
        raise bad("gone, present", (gone, present), "lists of patterns, not a text")
    if phases is not None and not set(phases) <= set(PHASES):
        raise bad("phases", phases, "some of " + ", ".join(PHASES))
    if trace.has_gpu:
        of, tables = "kernels", [trace.kernels]
    else:
        stages = trace.captures["stage"].tolist()
        moments = trace.annotations["ts_us"].to_numpy(), trace.annotations["capture"].to_numpy()
        phase = assign(*moments, trace.steps, stages)["phase"]
        of, tables = "operators", [trace.operators, trace.annotations.assign(phase=phase)]
    if phases is not None:
        tables = [table[table["phase"].isin(list(phases))] for table in tables]
    names = pd.concat([table[["name", "dur_us"]].astype({"name": "str"}) for table in tables], ignore_index=True)
    sums = names.groupby("name")["dur_us"].agg(["count", "sum"])
    can_tell = not tables[0].empty
    signs = [
        _sign(sums, pattern, wanted, can_tell)
        for wanted, each in (("gone", gone), ("present", present))
        for pattern in each
    ]
    return Verdict(trace.source, of, tuple(signs))


def _sign(sums: pd.DataFrame, pattern: str, wanted: str, can_tell: bool) -> Sign:
    try:
        hits = [bool(re.search(pattern, name)) for name in sums.index]
    except re.error as error:
        raise bad(wanted, pattern, f"a regular expression ({error})") from None
    calls, total = int(sums["count"][hits].sum()), float(sums["sum"][hits].sum())
    holds = (calls == 0) == (wanted == "gone") if can_tell else None
    return Sign(pattern, wanted, calls, total, holds)
