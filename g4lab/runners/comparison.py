"""The statistics of a serving A/B: effects with their intervals, the noise of the harness, and a verdict in words.

The unit is the round. An effect is the ratio B over A of one statistic over all rounds, with an interval from drawing
whole rounds; the A/A interval is the same statistic of A's second visits against its first. A change that silently
declines looks like one that does not help, so a patch that never ran is found and said.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from g4lab.bench.rounds import round_ratios, rounds_to_settle, smallest_effect, spread
from g4lab.bench.stats import Ratio
from g4lab.errors import bad
from g4lab.patches import parse
from g4lab.quality.acceptance import Acceptance, total
from g4lab.runners import request_log
from g4lab.runners.results import BenchResult

if TYPE_CHECKING:
    import pandas as pd

THROUGHPUTS = ("output_tokens_per_s", "requests_per_s")  # one value a visit, higher is better
LATENCIES = ("ttft", "tpot", "itl", "e2e")  # one value or more a request, lower is better
PERCENTILES = (50, 90, 99)
METRICS = (*THROUGHPUTS, *(f"p{p}_{latency}_ms" for latency in LATENCIES for p in PERCENTILES))
ROUND = "ABBA"
ENOUGH_ROUNDS = 3  # with fewer, the A/A interval is one or two pairs and bounds nothing
FASTER, SLOWER, OPEN = "B is faster", "B is slower", "not distinguishable"


class Visit(NamedTuple):
    """One benchmark of one side: `position` 0-3 within its round; `calls` of each patch since the
    server started, because some act once, when the model is built; `observed`: what ab's `observe` found;
    `acceptance`: of the visit's drafts; `cached_tokens`, `retractions`: of its requests, as the server counts them."""

    side: Literal["A", "B"]
    round: int
    position: int
    result: BenchResult
    calls: Mapping[str, int]
    observed: Mapping[str, float] = {}
    acceptance: Acceptance = Acceptance()
    cached_tokens: int = 0
    retractions: int = 0


class Effect(NamedTuple):
    """One metric: its values for A and B over all rounds, the ratio B/A, the harness's own A/A ratio, and the verdict.

    rounds_needed: rounds that would settle an effect as large as this one, smallest: the smallest effect (a ratio above
    1) that this many rounds settle; both in 4 of 5 experiments, if rounds go on to differ as these did
    (bench.rounds.settled_share). None: no number of rounds up to 1000, no effect up to a hundredfold.
    """

    metric: str
    a: float
    b: float
    ratio: Ratio
    aa: Ratio
    verdict: str
    rounds_needed: int | None = None
    smallest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `ab` found. a, b: the sides in words. `silent`: patches that only one side has and that never ran; `notes`:
    limits and doubts."""

    model: str
    a: str
    b: str
    effects: tuple[Effect, ...]
    visits: tuple[Visit, ...]
    silent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One sentence: in which metrics B is faster, in which slower, in which not to be told from A."""
        found: dict[str, list[str]] = {}
        for effect in self.effects:
            found.setdefault(effect.verdict, []).append(effect.metric)
        if len(found) == 1:
            return f"{next(iter(found))}, in all {len(self.effects)} metrics"
        ordered = sorted(found.items(), key=lambda pair: pair[0].startswith(OPEN))
        return "; ".join(f"{words} ({', '.join(metrics)})" for words, metrics in ordered)

    def table(self) -> "pd.DataFrame":
        """One row a metric: values, ratio B/A and its interval, the A/A interval, the verdict, and the what-ifs."""
        import pandas as pd

        frame = pd.DataFrame([_flat(effect) for effect in self.effects])
        return frame.astype({"rounds_needed": "Int64"}) if len(frame) else frame

    def requests(self) -> "pd.DataFrame":
        """One row a request (runners.request_log.COLUMNS)."""
        return request_log.frame(self.visits)

    def acceptance(self) -> "pd.DataFrame":
        """One row a side that drafts: verify steps, accepted drafts per verify, and SGLang's accept length."""
        import pandas as pd

        sums = {side: total(v.acceptance for v in self.visits if v.side == side) for side in "AB"}
        rows = [
            (side, drafts.verify_steps, drafts.drafted, drafts.accepted, drafts.per_verify, drafts.rate,
             drafts.accept_length)
            for side, drafts in sums.items()
            if drafts.verify_steps
        ]  # fmt: skip
        columns = ["side", "verify_steps", "drafted", "accepted", "accepted_per_verify", "rate", "accept_length"]
        return pd.DataFrame(rows, columns=columns)

    def values(self) -> dict[str, Any]:
        """For a record: every effect, every visit's row, the verdict, acceptance, and what was silent."""
        return {
            "verdict": self.verdict,
            "effects": [_flat(effect) for effect in self.effects],
            "visits": [_row(visit) for visit in self.visits],
            "acceptance": self.acceptance().to_dict("records"),
            "silent": list(self.silent),
            "notes": list(self.notes),
        }


def compare(
    visits: Sequence[Visit],
    *,
    model: str,
    a: str,
    b: str,
    fresh: bool,
    labels: tuple[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Comparison:
    """The statistics of `ab` over visits already made.

    Args:
        a, b: patches. labels: the sides in words where they differ in more than patches; default a and b.

    Raises:
        BadInput: a round is not whole.
    """
    rounds = len({visit.round for visit in visits})
    made = sorted((visit.round, visit.position, visit.side) for visit in visits)
    if not made or made != [(number, at, side) for number in range(rounds) for at, side in enumerate(ROUND)]:
        raise bad("visits", [side for *_, side in made][:8], "whole rounds, numbered from 0, of A B B A")
    names = {"A": parse(a), "B": parse(b)}
    silent = _silent(visits, names)
    void = labels is None and bool(silent) and set(silent) == set(names["A"]) ^ set(names["B"])
    notes = [
        "every visit had a server process of its own"
        if fresh
        else "one server process a side: the A/A interval does not hold the variance between processes"
    ]
    notes += [f"{name} never ran" for name in silent]
    fewest = min(len(visit.result.requests) for visit in visits)
    if 2 * rounds * fewest < 100:
        notes.append(f"p99 of {2 * rounds * fewest} requests a side is nearly the slowest one")
    doubts = {f"{v.side}: {warning}" for v in visits for warning in v.result.warnings}
    effects = []
    for group in (*THROUGHPUTS, *LATENCIES):
        found = _effects(group, visits, rounds, void)
        effects += found
        if not found:
            notes.append(f"{group} is left out: not every visit has it")
    if len(effects) > 1:
        notes.append(f"{len(effects)} metrics at level {effects[0].ratio.level:g} each: one alone may be chance")
    sides = labels or (a, b)
    return Comparison(model, *sides, tuple(effects), tuple(visits), silent, (*notes, *sorted(doubts)), parameters or {})


def _effects(group: str, visits: Sequence[Visit], rounds: int, void: bool) -> list[Effect]:
    """The effects of a throughput, or of a latency's percentiles; none where a visit has no positive value of it."""
    by_place = {(v.round, v.position): _values(v.result, group) for v in visits}
    if any(not value.size or not (value > 0).all() for value in by_place.values()):
        return []
    throughput = group in THROUGHPUTS
    metrics = [group] if throughput else [metric for metric in METRICS if metric.endswith(f"_{group}_ms")]
    statistic = _geometric_mean if throughput else functools.partial(np.percentile, q=PERCENTILES)

    def rounds_of(*positions: int) -> list[np.ndarray]:
        return [np.concatenate([by_place[number, at] for at in positions]) for number in range(rounds)]

    a, b = rounds_of(0, 3), rounds_of(1, 2)
    ratios, noises = round_ratios(a, b, statistic), round_ratios(rounds_of(0), rounds_of(3), statistic)
    sizes = [np.atleast_1d(statistic(np.concatenate(side))) for side in (a, b)]
    made = []
    for metric, before, after, ratio, aa in zip(metrics, *sizes, ratios, noises, strict=True):
        needed = smallest = None
        if rounds > 1:
            spreads = spread(ratio, rounds), spread(aa, rounds)
            needed = rounds_to_settle(ratio.ratio, *spreads, at_least=ENOUGH_ROUNDS)
            smallest = smallest_effect(rounds, *spreads)
        verdict = _verdict(ratio, aa, throughput, rounds, void)
        made.append(Effect(metric, float(before), float(after), ratio, aa, verdict, needed, smallest))
    return made


def _values(result: BenchResult, group: str) -> np.ndarray:
    if group in THROUGHPUTS:
        return np.array([getattr(result, group) or 0.0])
    if group == "itl":
        return np.concatenate([np.empty(0), *(request.itl_ms for request in result.requests)])
    found = (getattr(request, f"{group}_ms") for request in result.requests)
    return np.array([value for value in found if value is not None])


def _geometric_mean(values: np.ndarray) -> np.ndarray:
    return np.exp(np.log(values).mean())


def _silent(visits: Sequence[Visit], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Patches that one side has, the other has not, and that no visit of that side called."""
    found = []
    for side, other in ("AB", "BA"):
        ran = {name for v in visits if v.side == side for name, count in v.calls.items() if count}
        found += [name for name in names[side] if name not in names[other] and name not in ran]
    return tuple(found)


def _verdict(ratio: Ratio, aa: Ratio, higher_is_better: bool, rounds: int, void: bool) -> str:
    if void:
        return "no verdict: no patch that differs ran"
    if rounds < ENOUGH_ROUNDS:
        return f"no verdict: fewer than {ENOUGH_ROUNDS} rounds"
    if not ratio.beyond(aa):
        return f"{OPEN} at {rounds} rounds"
    return FASTER if (ratio.ratio > 1) == higher_is_better else SLOWER


def _flat(effect: Effect) -> dict[str, Any]:
    return {
        "metric": effect.metric,
        "a": effect.a,
        "b": effect.b,
        "ratio": effect.ratio.ratio,
        "low": effect.ratio.low,
        "high": effect.ratio.high,
        "aa_ratio": effect.aa.ratio,
        "aa_low": effect.aa.low,
        "aa_high": effect.aa.high,
        "verdict": effect.verdict,
        "rounds_needed": effect.rounds_needed,
        "smallest": effect.smallest,
    }


def _row(visit: Visit) -> dict[str, Any]:
    counts = {"cached_tokens": visit.cached_tokens, "retractions": visit.retractions}
    place = {"side": visit.side, "round": visit.round, "position": visit.position, "calls": dict(visit.calls)}
    drafts = {"verify_steps": visit.acceptance.verify_steps, "accepted": visit.acceptance.accepted}
    return {**place, **counts, **drafts, **dict(visit.observed), **visit.result.row()}
