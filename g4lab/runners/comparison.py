"""Serving A/B: the same server with patches A and with patches B, measured in turns, with the noise of the harness.

A round is A B B A, so a drift that is linear in time cancels. The effect of a metric is the ratio of its medians, B
over A, with a bootstrap interval; the A/A interval is the same statistic of A's second visits against its first. A
change that silently declines looks like one that does not help, so a patch that never ran is found and said.
"""

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from g4lab import env
from g4lab.bench.stats import Ratio, median_ratio
from g4lab.errors import bad
from g4lab.patches import parse
from g4lab.runners.client import bench_serving
from g4lab.runners.results import BenchResult
from g4lab.runners.server import Server, sglang_server

if TYPE_CHECKING:
    import pandas as pd

HIGHER_IS_BETTER = {
    "output_tokens_per_s": True,
    "requests_per_s": True,
    "median_ttft_ms": False,
    "median_tpot_ms": False,
    "median_itl_ms": False,
    "median_e2e_ms": False,
}
ROUND = "ABBA"
ENOUGH_ROUNDS = 3  # with fewer, the A/A interval is one or two pairs and bounds nothing


class Visit(NamedTuple):
    """One benchmark of one side: `position` 0-3 within its round; `calls` of each patch since the
    server started, because some act once, when the model is built; `observed`: what ab's `observe` found."""

    side: Literal["A", "B"]
    round: int
    position: int
    result: BenchResult
    calls: Mapping[str, int]
    observed: Mapping[str, float] = {}


class Effect(NamedTuple):
    """One metric: medians of A and B, the ratio B/A, the harness's own A/A ratio, and what follows."""

    metric: str
    a: float
    b: float
    ratio: Ratio
    aa: Ratio
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """What `ab` found. `silent`: patches that only one side has and that never ran; `notes`: limits and doubts."""

    model: str
    a: str
    b: str
    effects: tuple[Effect, ...]
    visits: tuple[Visit, ...]
    silent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> "pd.DataFrame":
        """One row a metric: medians, ratio B/A and its interval, the A/A interval, and the verdict."""
        import pandas as pd

        return pd.DataFrame([_flat(effect) for effect in self.effects])

    def values(self) -> dict[str, Any]:
        """For a record: every effect, every visit's row, and what was silent."""
        return {
            "effects": [_flat(effect) for effect in self.effects],
            "visits": [
                {"side": v.side, "round": v.round, "position": v.position, "calls": dict(v.calls)} | v.result.row()
                for v in self.visits
            ],
            "silent": list(self.silent),
            "notes": list(self.notes),
        }


def ab(
    model: str | Path,
    a: str = "none",
    b: str = "default",
    *,
    rounds: int = 3,
    num_prompts: int = 16,
    input_len: int = 64,
    output_len: int = 16,
    fresh: bool | None = None,
    seed: int = 1,
    server: Mapping[str, Any] | None = None,
    server_args: tuple[Sequence[str], Sequence[str]] = ((), ()),
    client: Mapping[str, Any] | None = None,
    observe: Callable[[Server], Mapping[str, float]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Serve `model` with patches `a` and with patches `b`, and measure both in `rounds` rounds of A B B A.

    The four visits of a round send the same prompts; another round sends others.

    Args:
        fresh: start a new server for every visit; default on a GPU, where two do not fit. Otherwise both stay alive
            (and sleep when idle), and the A/A interval does not hold what differs from one server process to the next.
        server: more arguments for sglang_server, for both sides. client: more arguments for bench_serving.
        server_args: SGLang's flags of A and of B alone, for sides that differ in more than patches.
        observe: called with the server after each of its benchmarks; what it returns stays with the visit.
        progress: called with a line for every step.

    Raises:
        BadInput: an argument that cannot work. Unavailable: a server or the client failed.
    """
    if rounds < 1:
        raise bad("rounds", rounds, "at least 1")
    names = {"A": parse(a), "B": parse(b)}
    server = dict(server or {})
    fresh = server.get("device", "cuda" if env.has_gpu() else "cpu") == "cuda" if fresh is None else fresh
    parameters = {"rounds": rounds, "num_prompts": num_prompts, "prompt_len": input_len, "answer_len": output_len,
                  "fresh": fresh, "seed": seed, "a": a, "b": b, "model": str(model)}  # fmt: skip
    common = [*server.pop("args", ()), *(() if fresh else ("--sleep-on-idle",))]
    args = {side: [*common, *own] for side, own in zip("AB", server_args, strict=True)}
    load = {"num_prompts": num_prompts, "input_len": input_len, "output_len": output_len, **(client or {})}
    load["extra_args"] = [*load.get("extra_args", ()), "--warmup-requests", "4"]

    visits = []
    with contextlib.ExitStack() as kept:
        alive: dict[str, Server] = {}
        for number in range(rounds):
            for position, side in enumerate(ROUND):
                with contextlib.ExitStack() as once:
                    running = alive.get(side)
                    if running is None:
                        progress(f"starting {side} ({names[side] or 'no patches'})")
                        running = (once if fresh else kept).enter_context(
                            sglang_server(model, (a, b)[side == "B"], args[side], **server)
                        )
                        if not fresh:
                            alive[side] = running
                    visit = _visit(running, side, number, position, seed + number, load)
                    visits.append(visit._replace(observed=observe(running)) if observe else visit)
                    progress(f"round {number + 1} of {rounds}, {side}: {_short(visits[-1].result)}")
    return compare(visits, model=str(model), a=a, b=b, fresh=fresh, parameters=parameters)


def compare(
    visits: Sequence[Visit], *, model: str, a: str, b: str, fresh: bool, parameters: Mapping[str, Any] | None = None
) -> Comparison:
    """The statistics of `ab` over visits already made. Raises BadInput where a round is not whole."""
    rounds = len({visit.round for visit in visits})
    made = sorted((visit.round, visit.position, visit.side) for visit in visits)
    if not made or made != [(number, at, side) for number in range(rounds) for at, side in enumerate(ROUND)]:
        raise bad("visits", [side for *_, side in made][:8], "whole rounds, numbered from 0, of A B B A")
    names = {"A": parse(a), "B": parse(b)}
    silent = _silent(visits, names)
    void = bool(silent) and set(silent) == set(names["A"]) ^ set(names["B"])
    notes = [
        "every visit had a server process of its own"
        if fresh
        else "one server process a side: the A/A interval does not hold the variance between processes"
    ]
    notes += [f"{name} never ran" for name in silent]
    doubts = {f"{v.side}: {warning}" for v in visits for warning in v.result.warnings}
    effects = []
    for metric, higher in HIGHER_IS_BETTER.items():
        samples = {
            key: [
                getattr(v.result, metric)
                for v in visits
                if v.side == key[0] and (len(key) == 1 or v.position == int(key[1]))
            ]
            for key in ("A", "B", "A0", "A3")
        }
        if any(value is None or not value > 0 for sample in samples.values() for value in sample):
            notes.append(f"{metric} is left out: not every visit has it")
            continue
        ratio, aa = median_ratio(samples["B"], samples["A"]), median_ratio(samples["A3"], samples["A0"])
        verdict = _verdict(ratio, aa, higher, rounds, void)
        effects.append(
            Effect(metric, statistics.median(samples["A"]), statistics.median(samples["B"]), ratio, aa, verdict)
        )
    return Comparison(model, a, b, tuple(effects), tuple(visits), silent, (*notes, *sorted(doubts)), parameters or {})


def _visit(server: Server, side: str, number: int, position: int, seed: int, load: Mapping[str, Any]) -> Visit:
    result = bench_serving(server, **{"seed": seed, **load})
    return Visit(side, number, position, result, server.counters())


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
        return "inside A/A noise"
    return "outside A/A noise: B is " + ("better" if (ratio.ratio > 1) == higher_is_better else "worse")


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
    }


def _short(result: BenchResult) -> str:
    return f"{result.output_tokens_per_s:.1f} output tokens/s, median TPOT {result.median_tpot_ms:.2f} ms"
