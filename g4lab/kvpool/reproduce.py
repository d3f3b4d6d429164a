"""Published pool sizes, by the arithmetic of `plan`: which of them follow from others, to the token, and which cannot.

A published pool fixes the memory behind it to within one cell. Two pools of one machine at two ratios must agree on it,
so the second tests the arithmetic, not the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.gemma4 import Spec
from g4lab.gemma4 import spec as spec_named
from g4lab.kvpool.charges import swa_tokens_per_request
from g4lab.kvpool.plan import DEFAULT_RATIO, cell, plan
from g4lab.published import published

if TYPE_CHECKING:
    import pandas as pd

POOLS, SLIDING_POOL = "full-attention pool", "sliding-window pool"
_CASES = (  # model, the table's case, page size (read off the figures: multiples of 64 in pyc96/sglang#10)
    ("26b-a4b", "KV pools", "pyc96/sglang#2", 1),
    ("26b-a4b", "KV pools 26b-a4b", "pyc96/sglang#10", 64),
    ("31b", "KV pools 31b", "pyc96/sglang#10", 64),
)
_TP, _TOWERS = 2, ("multimodal loaded", "text only")


def memory_behind(
    spec: Spec | str, full_tokens: int, *, ratio: float, page_size: int = 1, tp: int = 1, draft_layers: int = 0
) -> range:
    """The numbers of bytes for KV on one rank that give a full pool of exactly `full_tokens`.

    Raises:
        BadInput: `full_tokens` is no whole number of pages.
    """
    if full_tokens < 1 or full_tokens % page_size:
        raise bad("full_tokens", full_tokens, f"a multiple of the page size, {page_size}")
    each = cell(spec, tp=tp, draft_layers=draft_layers).bytes(ratio)
    return range(round(full_tokens * each), round((full_tokens + page_size) * each))


def common(first: range, second: range) -> range:
    """The numbers in both ranges; empty where they disagree."""
    return range(max(first.start, second.start), min(first.stop, second.stop))


@dataclass(frozen=True)
class Figure:
    """One published figure, and what the plan makes of the others."""

    model: str
    figure: str
    published: int | None  # None: nothing but what others imply
    derived: int | None
    verdict: str  # "exact", "within ...", "given" (fixes the memory) or "not derivable"
    how: str
    source: str


def figures() -> pd.DataFrame:
    """Every published figure about pool sizes, a row each: the columns of Figure."""
    import pandas as pd

    rows = pd.DataFrame([*_pools(), *_counts(), *_text_only(), *_underivable()])
    return rows.astype({"published": "Int64", "derived": "Int64"})


def _pool(case: str, pr: str, ratio: float, metric: str) -> int:
    table = published("swa_ratio")
    of = table["variant"].str.startswith(f"ratio {ratio:g}") & (table["case"] == case) & (table["pr"] == pr)
    found = table[of & (table["metric"] == metric)]["value"]
    return int(found.iloc[0]) if len(found) else 0


def _pools() -> list[Figure]:
    rows = []
    for model, case, pr, page in _CASES:
        for ratio in (DEFAULT_RATIO, 0.15):
            full, swa = (_pool(case, pr, ratio, metric) for metric in (POOLS, SLIDING_POOL))
            if not full:
                continue
            memory = budget(model)
            made = plan(model, memory.start, ratio=ratio, page_size=page)
            given = ratio == DEFAULT_RATIO
            how = f"fixes the memory to {len(memory_behind(model, full, ratio=ratio, page_size=page)):,} bytes"
            if not given:
                least, most = _from_default(model, ratio, page)
                how = f"the 0.8 pool alone leaves {least:,} to {most:,}; both agree on {memory.start:,} bytes or more"
            verdict = "given" if given else _verdict(full, made.full_tokens)
            rows.append(Figure(model, f"{POOLS}, ratio {ratio:g}", full, made.full_tokens, verdict, how, pr))
            how = f"int({full:,} * {ratio:g}), page {page}"
            verdict = _verdict(swa, made.swa_tokens)
            rows.append(Figure(model, f"{SLIDING_POOL}, ratio {ratio:g}", swa, made.swa_tokens, verdict, how, pr))
    return rows


def _from_default(model: str, ratio: float, page: int) -> tuple[int, int]:
    """Smallest and largest full pool at `ratio` that the published pool at 0.8 allows."""
    case, pr, page_at_default = next(of for name, *of in _CASES if name == model)
    tokens = _pool(case, pr, DEFAULT_RATIO, POOLS)
    memory = memory_behind(model, tokens, ratio=DEFAULT_RATIO, page_size=page_at_default)
    ends = (plan(model, kv_bytes, ratio=ratio, page_size=page).full_tokens for kv_bytes in (memory[0], memory[-1]))
    return tuple(ends)


def budget(model: str) -> range:
    """Bytes for KV of the published B200 server of "26b-a4b" or "31b": what its pools at both ratios agree on.

    Raises:
        BadInput: another model.
    """
    of = {name: of for name, *of in reversed(_CASES)}
    if model not in of:
        raise bad("model", model, "one with published pools: " + ", ".join(of))
    case, pr, page = of[model]
    return common(
        *(memory_behind(model, _pool(case, pr, r, POOLS), ratio=r, page_size=page) for r in (DEFAULT_RATIO, 0.15))
    )


def _verdict(value: int, derived: int) -> str:
    return "exact" if value == derived else f"within {abs(derived / value - 1):.1%}"


def _counts() -> list[Figure]:
    """Requests and windows that the text counts in the pools, and what the plan says they hold."""
    rows = []
    for ratio in (DEFAULT_RATIO, 0.15):
        made = plan("26b-a4b", budget("26b-a4b").start, ratio=ratio)
        pools = {"9k-token requests that fit the full pool (about)": (made.full_tokens, 9000)}
        pools["1024-token windows that fit the sliding pool (about)"] = (made.swa_tokens, 1024)
        for metric, (tokens, each) in pools.items():
            value = _pool("KV pools", "pyc96/sglang#2", ratio, metric)
            how = f"{tokens:,} // {each}"
            if each == 1024:
                held = swa_tokens_per_request(spec_named("26b-a4b"), 8000, 1000)
                how += f"; a request holds up to {held}, so {tokens // held}"
            rows.append(
                Figure(
                    "26b-a4b",
                    f"{metric}, {ratio:g}",
                    value,
                    tokens // each,
                    _verdict(value, tokens // each),
                    how,
                    "pyc96/sglang#2",
                )
            )
    return rows


def _text_only() -> list[Figure]:
    """The 31B on two H100: what the published fractions and pools say about each other."""
    tokens = [_memory("KV pool", variant) for variant in _TOWERS]
    fractions = [_memory("mem_fraction_static, auto-tuned", variant) for variant in _TOWERS]
    memory = [memory_behind("31b", int(of), ratio=DEFAULT_RATIO, tp=_TP) for of in tokens]
    grown, step = memory[1].start - memory[0].start, fractions[1] - fractions[0]
    how = f"{grown / 1e9:.2f} GB more for {step:.3f} more of the fraction: {grown / step / 1e9:.0f} GB before loading, "
    how += "plausible for an 80 GB card, not published; and the cap on requests went from 48 to 80 with it"
    figure = "KV pool without towers, TP=2"
    return [Figure("31b", figure, int(tokens[1]), None, "not derivable", how, "pyc96/sglang#10")]


def _memory(metric: str, variant: str) -> float:
    table = published("mm_disabled")
    return table[(table["metric"] == metric) & (table["variant"] == variant)]["value"].iloc[0]


def _underivable() -> list[Figure]:
    memory = f"needs the memory fraction and what graphs and driver take; the pools imply {budget('26b-a4b').start:,}"
    blocks = "vLLM splits memory into blocks of its own"
    return [
        Figure("26b-a4b", "bytes for KV of 180 GB", None, None, "not derivable", memory, "pyc96/sglang#2"),
        Figure(
            *("31b", "vLLM's KV pool, TP=2", int(_memory("KV pool", "vLLM")), None),
            *("not derivable", blocks, "pyc96/sglang#10"),
        ),
    ]
