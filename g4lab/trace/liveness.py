"""Whether a change is alive: the kernels it replaces are gone from a trace, and its own are there."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from g4lab.errors import bad
from g4lab.trace.model import Trace


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


def expect(trace: Trace, gone: Sequence[str] = (), present: Sequence[str] = ()) -> Verdict:
    """Look for kernels that should be gone from a trace, and for those that should be in it.

    With GPU activity the kernels' names count. Without, the names of CPU operators and of annotations do: an
    interpreted kernel of g4lab leaves an annotation "NAME (interpreted)".

    Args:
        gone, present: regular expressions, searched for anywhere in a name.

    Raises:
        BadInput: neither is given, or a pattern is no regular expression.
    """
    if not gone and not present:
        raise bad("gone, present", (gone, present), "at least one pattern")
    if isinstance(gone, str) or isinstance(present, str):
        raise bad("gone, present", (gone, present), "lists of patterns, not a text")
    if trace.has_gpu:
        of, names = "kernels", trace.kernels[["name", "dur_us"]]
    else:
        of, tables = "operators", (trace.operators, trace.annotations)
        names = pd.concat([table[["name", "dur_us"]].astype({"name": "str"}) for table in tables], ignore_index=True)
    sums = names.groupby("name", observed=True)["dur_us"].agg(["count", "sum"])
    signs = [
        _sign(sums, pattern, wanted) for wanted, each in (("gone", gone), ("present", present)) for pattern in each
    ]
    return Verdict(trace.source, of, tuple(signs))


def _sign(sums: pd.DataFrame, pattern: str, wanted: str) -> Sign:
    try:
        hits = [bool(re.search(pattern, name)) for name in sums.index]
    except re.error as error:
        raise bad(wanted, pattern, f"a regular expression ({error})") from None
    calls, total = int(sums["count"][hits].sum()), float(sums["sum"][hits].sum())
    holds = None if sums.empty else (calls == 0) == (wanted == "gone")
    return Sign(pattern, wanted, calls, total, holds)
