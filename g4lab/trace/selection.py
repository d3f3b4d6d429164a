"""Which rows of a trace an analysis is about: GPU kernels or CPU operators, of all phases or of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from g4lab.errors import bad
from g4lab.trace.model import PHASES, Trace

if TYPE_CHECKING:
    import pandas as pd

OF = ("kernels", "operators")
NO_PERFORMANCE = "CPU time: no kernel performance"


class Selection(NamedTuple):
    """rows: of trace.kernels or trace.operators. of: which. time: the column whose sum is the time they took."""

    rows: pd.DataFrame
    of: str
    time: str

    def title(self, what: str, phase: str | None) -> str:
        """`what` with the phase, and for CPU operators the reminder that they are no kernels."""
        words = what + (f" in {phase}" if phase else "")
        return words if self.of == "kernels" else f"{words} ({NO_PERFORMANCE})"


def select(trace: Trace, phase: str | None = None, of: str | None = None) -> Selection:
    """The rows of one phase (None: all) of the kernels or operators; of=None: kernels where the trace has any.

    Raises:
        BadInput: `phase` is no phase, or none of this trace; `of` is neither "kernels" nor "operators".
    """
    if of not in (*OF, None):
        raise bad("of", of, "one of " + ", ".join(OF))
    of = of or ("kernels" if trace.has_gpu else "operators")
    rows = getattr(trace, of)
    if phase is not None:
        _check(phase, rows)
        rows = rows[rows["phase"] == phase]
    return Selection(rows, of, "dur_us" if of == "kernels" else "self_us")


def steps_of(trace: Trace, phase: str | None = None) -> pd.DataFrame:
    """The steps of one phase (None: all)."""
    return trace.steps if phase is None else trace.steps[trace.steps["phase"] == phase]


def _check(phase: str, rows: pd.DataFrame) -> None:
    if phase not in PHASES:
        raise bad("phase", phase, "one of " + ", ".join(PHASES))
    seen = [each for each in PHASES if (rows["phase"] == each).any()]
    if phase not in seen:
        raise bad("phase", phase, "a phase of this trace: " + (", ".join(seen) or "it has none"))
