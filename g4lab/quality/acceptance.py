"""How many drafts of speculative decoding were right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Acceptance(NamedTuple):
    """Counts over answers: verification steps, drafts proposed, drafts accepted, and tokens answered."""

    verify_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0

    @property
    def per_verify(self) -> float | None:
        """Accepted drafts per verification step, from 0 to the drafts of a step; None without speculative decoding."""
        return self.accepted / self.verify_steps if self.verify_steps else None

    @property
    def rate(self) -> float | None:
        """Accepted drafts of those proposed, 0 to 1; None where no proposals were counted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def accept_length(self) -> float | None:
        """SGLang's figure: tokens answered per verification step.

        Every step adds one token of the target's own and an answer's first token comes from the prefill, so it is above
        1 with no draft accepted, and the more so the shorter the answers.
        """
        return self.tokens / self.verify_steps if self.verify_steps else None


def total(parts: Iterable[Sequence[int]]) -> Acceptance:
    """The sums of many answers' or visits' counts; the mean of ratios would weigh a short answer as much as a long."""
    return Acceptance(*map(sum, zip(*parts, strict=True)))
