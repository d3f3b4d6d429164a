"""Which patch moved the model? Rows of drift against no patches, held against the noise, and the likeliest culprit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from g4lab.errors import bad
from g4lab.quality.acceptance import Acceptance
from g4lab.quality.drift import comparable_rows, drift, first_flips, flips
from g4lab.quality.tokens import first_difference

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 2.0  # a row lies beyond the noise where it is more than twice the largest noise row
# What is held against the noise, larger is farther: a row's field -> its name in a verdict.
FARTHER = {
    "drift_max": "drift",
    "drift_mean": "drift",
    "kl_mean": "KL",
    "flips_pct": "routing",
    "greedy_lost_pct": "tokens",
    "acceptance_change": "MTP acceptance",
}


@dataclass(frozen=True)
class Answer:
    """One engine's answer to one prompt of P tokens with N new tokens; row i is what it said after tokens 0 to i.

    tokens: the N new ones. ids int32, logp float32 [P - 1 + N, K]: the likeliest tokens of each row. experts int32
    [P - 1 + N, L, k] or None. correct_drafts, verifies: of speculative decoding, 0 without it.
    """

    prompt_len: int
    tokens: tuple[int, ...]
    ids: np.ndarray
    logp: np.ndarray
    experts: np.ndarray | None = None
    correct_drafts: int = 0
    verifies: int = 0


@dataclass(frozen=True)
class Row:
    """One configuration against none. Differences are of log-probabilities (a logit is defined up to a constant).

    noise: none again, in another server. drift_max, drift_mean: over positions and tokens; kl_mean, kl_max: nats a
    position. flips_pct: of all pairs of token and layer; flips_by_layer: percent of tokens; first_flip_layer: the
    lowest in which any token is routed otherwise. greedy_lost_pct: answered tokens from the first other one on.
    acceptance: correct drafts per verification step; acceptance_change: |difference from none's|. beyond: in what it
    lies beyond the noise. problem: why it cannot be judged (the server died), or what did not run.
    """

    patches: tuple[str, ...]
    noise: bool = False
    positions: int = 0
    drift_max: float | None = None
    drift_mean: float | None = None
    kl_mean: float | None = None
    kl_max: float | None = None
    top_changed_pct: float | None = None
    flips_pct: float | None = None
    first_flip_layer: int | None = None
    flips_by_layer: tuple[float, ...] = ()
    greedy_lost_pct: float | None = None
    acceptance: float | None = None
    acceptance_change: float | None = None
    beyond: tuple[str, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The patches, comma-separated; "none", or "none again" for a noise row."""
        return ",".join(self.patches) or ("none again" if self.noise else "none")


def acceptance(answers: Sequence[Answer]) -> float | None:
    """Correct drafts per verification step over all answers; None without speculative decoding."""
    steps, correct = (sum(getattr(answer, name) for answer in answers) for name in ("verifies", "correct_drafts"))
    return Acceptance(verify_steps=steps, accepted=correct).per_verify


def measure(
    base: Sequence[Answer],
    other: Sequence[Answer],
    vocab_size: int,
    patches: Sequence[str] = (),
    noise: bool = False,
    problem: str = "",
) -> Row:
    """The row of `other` against `base`, two engines' answers to the same prompts.

    Raises:
        BadInput: they did not answer the same number of prompts.
    """
    if len(other) != len(base) or not base:
        raise bad("other", f"{len(other)} answers", f"one for each of {len(base)} prompts")
    drifts, flipped, lost = [], [], 0
    for a, b in zip(base, other, strict=True):
        rows = comparable_rows(a.prompt_len, a.tokens, b.tokens)
        drifts.append(drift(a.ids[:rows], a.logp[:rows], b.ids[:rows], b.logp[:rows], vocab_size))
        if a.experts is not None and b.experts is not None:
            flipped.append(flips(a.experts[:rows], b.experts[:rows]))
        at = first_difference(a.tokens, b.tokens)
        lost += 0 if at is None else len(a.tokens) - at
    largest, mean, kl, same_top = (np.concatenate(parts) for parts in zip(*drifts, strict=True))
    routing: dict[str, Any] = {}
    if flipped:
        where = np.concatenate(flipped)
        first = int(first_flips(where).min())
        routing = {
            "flips_pct": 100 * float(where.mean()),
            "first_flip_layer": first if first < where.shape[1] else None,
            "flips_by_layer": tuple((100 * where.mean(0)).tolist()),
        }
    before, now = acceptance(base), acceptance(other)
    return Row(
        patches=tuple(patches),
        noise=noise,
        positions=len(kl),
        drift_max=float(largest.max()),
        drift_mean=float(mean.mean()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top_changed_pct=100 * float(1 - same_top.mean()),
        greedy_lost_pct=100 * lost / sum(len(a.tokens) for a in base),
        acceptance=now,
        acceptance_change=None if now is None or before is None else abs(now - before),
        problem=problem,
        **routing,
    )


@dataclass(frozen=True)
class Bisection:
    """What a bisection found: its noise rows first, then one row a configuration, each against none."""

    model: str
    rows: tuple[Row, ...]
    verdict: str
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row a configuration: its name and all fields of Row but the layers (`by_layer` has them)."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.rows])

    def by_layer(self) -> pd.DataFrame:
        """Percent of tokens with another set of experts: one row a configuration, as in `table`, one column a layer; no
        column where the model has no experts."""
        import pandas as pd

        layers = max(len(row.flips_by_layer) for row in self.rows)
        shares = [row.flips_by_layer or (np.nan,) * layers for row in self.rows]
        return pd.DataFrame(shares, index=[row.name for row in self.rows], columns=range(layers))

    @classmethod
    def from_record(cls, values: Mapping[str, Any], parameters: Mapping[str, Any]) -> Bisection:
        """The bisection that a record's values and parameters hold."""
        rows = []
        for kept in values["rows"]:
            fields = {name: value for name, value in kept.items() if name != "configuration"}
            for name in ("patches", "beyond"):
                fields[name] = tuple(filter(None, fields[name].replace(", ", ",").split(",")))
            rows.append(Row(**fields | {"flips_by_layer": tuple(fields["flips_by_layer"])}))
        return cls(parameters["model"], tuple(rows), values["verdict"], tuple(values["notes"]), parameters)

    def values(self) -> dict[str, Any]:
        """For a record: every row, the verdict and the notes."""
        rows = [_flat(row) | {"flips_by_layer": list(row.flips_by_layer)} for row in self.rows]
        return {"rows": rows, "verdict": self.verdict, "notes": list(self.notes)}


def judge(
    rows: Sequence[Row], model: str, notes: Sequence[str] = (), parameters: Mapping[str, Any] | None = None
) -> Bisection:
    """Mark the rows that lie beyond the noise, and name the likeliest culprit.

    Culprits are the smallest: a configuration beyond the noise of which no measured part lies beyond it. The likeliest
    has the largest mean KL divergence; one whose server died is worse than any.

    Raises:
        BadInput: there is no noise row.
    """
    noise = [row for row in rows if row.noise]
    if not noise:
        raise bad("rows", [row.name for row in rows], "at least one noise row (none against none)")
    marked = [row if row.noise else _mark(row, noise) for row in rows]
    beyond = [row for row in marked if row.beyond]
    culprits = [row for row in beyond if not any(set(part.patches) < set(row.patches) for part in beyond)]
    culprits.sort(key=lambda row: -(np.inf if row.kl_mean is None else row.kl_mean))
    ordered = (*noise, *(row for row in marked if not row.noise))
    return Bisection(model, ordered, _verdict(culprits, ordered), tuple(notes), parameters or {})


def _mark(row: Row, noise: Sequence[Row]) -> Row:
    if row.drift_max is None:
        return replace(row, beyond=("no answer",))
    found = {}
    for name, word in FARTHER.items():
        value, floor = getattr(row, name), max(getattr(each, name) or 0.0 for each in noise)
        if value is not None and value > MARGIN * floor:
            found[word] = True
    return replace(row, beyond=tuple(found))


def _verdict(culprits: Sequence[Row], rows: Sequence[Row]) -> str:
    if not culprits:
        return "no configuration lies beyond the noise"
    first, *others = culprits
    named = f"{'patch' if len(first.patches) == 1 else 'patches'} {first.name}"
    if len(first.patches) > 1 and {(name,) for name in first.patches} <= {row.patches for row in rows}:
        named += " together, none of them alone"
    if first.kl_mean is None:
        size = first.problem
    else:
        floor = max(row.kl_mean for row in rows if row.noise)
        size = f"KL {first.kl_mean:.2g} nats a position, noise {floor:.2g}; beyond it in {', '.join(first.beyond)}"
        if not (first.flips_pct or first.greedy_lost_pct or first.top_changed_pct):
            size += ", yet no expert and no likeliest token is another one"
    also = f"; beyond the noise, too: {'; '.join(row.name for row in others)}" if others else ""
    return f"likeliest culprit: {named} ({size}){also}"


def _flat(row: Row) -> dict[str, Any]:
    flat = asdict(row) | {"patches": ",".join(row.patches), "beyond": ", ".join(row.beyond)}
    del flat["flips_by_layer"]
    return {"configuration": row.name} | flat
