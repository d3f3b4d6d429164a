"""The pull requests' quality claims, recomputed: what was claimed, what their questions allow, what would settle it.

None published its per-question results, so how many answers differed is not known. What follows from the totals alone
is computed as it is; what needs the discordance takes one as an argument and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from g4lab.errors import bad
from g4lab.published import published
from g4lab.quality.intervals import count, normal_quantile, unpaired_difference, wilson
from g4lab.quality.paired import mcnemar, sign_test
from g4lab.quality.power import questions_not_worse, questions_paired

if TYPE_CHECKING:
    import pandas as pd

DISCORDANCE = (
    0.1  # assumed where pairs were not published; the repeated runs of SGLang PR #26588 differ in 8.5 % or more
)
MARGIN = 0.01  # "no regression" read as: less than one point worse
MMLU = 14042  # questions of the whole test split


@dataclass(frozen=True)
class Claim:
    """Two variants' rows of a published table: those whose case and variant start so. n: questions, None where the text
    does not say. said: the pull request's conclusion in brief."""

    label: str
    table: str
    case: str
    a: str
    b: str
    n: int | None
    said: str


CLAIMS = (
    Claim("fused router, against vLLM", "router_quality", "MMLU, 500", "vLLM", "fused router", 500, "no regression"),
    Claim("window pool ratio, against vLLM", "swa_ratio", "MMLU, 500", "vLLM", "and ratio 0.15", 500, "sampling noise"),
    Claim("extend tiles", "extend_attention_serving", "MMLU N=500", "SGLang, custom", "SGLang patch C", 500, "tied"),
    Claim("page indices clamped", "frozen_kv_mtp", "MMLU, 500", "triton", "page indices", 500, "within noise"),
    Claim("frozen-KV window state", "frozen_kv_mtp", "MMLU, 500", "triton", "sliding", 500, "sampling noise"),
    Claim("text-only load, against vLLM", "mm_disabled", "MMLU, 500", "vLLM", "SGLang", 500, "tied within noise"),
    Claim("31B, against vLLM", "swa_ratio", "MMLU, 500", "vLLM", "SGLang, ratio 0.8", 500, "within noise"),
    Claim("kept commits, run 1", "h200_moe", "GSM8K, 200", "baseline, run 1", "patched (both reverted), run 1", 200,
          "within noise"),
    Claim("kept commits, run 2", "h200_moe", "GSM8K, 200", "baseline, run 2", "patched (both reverted), run 2", 200,
          "within noise"),
    Claim("A/A: patched again", "h200_moe", "GSM8K, 200", "patched (both reverted), run 1",
          "patched (both reverted), run 2", 200, "run-to-run"),
    Claim("A/A: baseline again", "h200_moe", "GSM8K, 200", "baseline, run 1", "baseline, run 2", 200, "run-to-run"),
    Claim("31B, fused norms", "qkv_norm", "MMLU 31b", "before", "this PR, triton", None, "(figures only)"),
    Claim("31B, fused norms, trtllm_mha", "qkv_norm", "MMLU 31b", "before", "this PR, trtllm", None, "(figures only)"),
    Claim("E4B, fused norms", "qkv_norm", "MMLU e4b", "before", "this PR", None, "(figures only)"),
)  # fmt: skip
DROPS = {"lower": "one router change, least drop", "upper": "one router change, most"}


def claims(discordance: float = DISCORDANCE, margin: float = MARGIN) -> pd.DataFrame:
    """One row for each claim: what was claimed, what N allows, N needed to settle it.

    Columns: claim, pr, said, n; a, b (accuracies) and net (questions, B - A); difference, low, high (fractions;
    Newcombe's unpaired 95 % interval, as the pairs are not known); settled_up_to: the most discordant questions with
    which this net difference has an exact McNemar p below 0.05 (NA: with none); questions_needed: to find the claimed
    difference with 80 % power, and questions_not_worse: to show "less than `margin` worse", both at `discordance`;
    allows: in words.

    Raises:
        BadInput: a claim's rows are not in the tables, or a rate that power.questions_paired refuses.
    """
    import pandas as pd

    rows = [_row(claim, discordance, margin) for claim in CLAIMS]
    rows += [_drop(end, label, discordance, margin) for end, label in DROPS.items()]
    whole = ["n", "net", "settled_up_to", "questions_needed"]
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def _row(claim: Claim, discordance: float, margin: float) -> dict:
    (a, _), (b, pr) = (_value(claim, variant) for variant in (claim.a, claim.b))
    row = {"claim": claim.label, "pr": pr, "said": claim.said, "n": claim.n, "a": a, "b": b}
    if claim.n is None:
        return row | _needs(b - a, discordance, margin) | {"allows": "nothing: the number of questions is not stated"}
    right_a, right_b = correct(a, claim.n), correct(b, claim.n)
    found = unpaired_difference(right_a, right_b, claim.n)
    row |= {"net": right_b - right_a, "difference": found.estimate, "low": found.low, "high": found.high}
    return row | _settled(right_b - right_a) | _needs(b - a, discordance, margin) | {"allows": _words(found)}


def _drop(end: str, label: str, discordance: float, margin: float) -> dict:
    """SGLang PR #26588's drop for one router change: a difference alone, the accuracies around it are lost."""
    table = published("h200_moe")
    (row,) = table[table["metric"] == f"score lost, {end}"].itertuples()
    net = -correct(row.value, 200)
    return {"claim": label, "pr": row.pr, "said": "regression", "n": 200, "net": net, "difference": -row.value,
            **_settled(net), **_needs(row.value, discordance, margin),
            "allows": "a drop only if almost no other answer differed"}  # fmt: skip


def _value(claim: Claim, variant: str) -> tuple[float, str]:
    table = published(claim.table)
    rows = table[table["case"].str.startswith(claim.case) & table["metric"].isin(["accuracy", "score"])]
    rows = rows[rows["variant"].str.startswith(variant)]
    if len(rows) > 1:  # one variant in two comparisons: the one beside the other variant
        other = claim.b if variant == claim.a else claim.a
        beside = table[table["case"].str.startswith(claim.case) & table["variant"].str.startswith(other)]
        rows = rows[rows["condition"].isin(beside["condition"])]
    if len(rows) != 1:
        raise bad("claim", claim.label, f"one accuracy of {variant!r} in {claim.table}, found {len(rows)}")
    return float(rows["value"].iloc[0]), rows["pr"].iloc[0]


def correct(accuracy: float, n: int) -> int:
    """The whole number of right answers that a published accuracy stands for.

    Raises:
        BadInput: no number of n answers rounds to it at three decimals.
    """
    right = round(accuracy * n)
    if abs(right / n - accuracy) > 0.0005 + 1e-9:
        raise bad("accuracy", accuracy, f"a fraction that a number of {n} right answers gives")
    return right


def most_discordant(net: int, alpha: float = 0.05) -> int | None:
    """The most discordant questions with which a net difference still has an exact McNemar p below alpha; None: none.

    Every further pair of discordant questions, one to each side, raises p.
    """
    net = abs(count("net", abs(net)))
    if mcnemar(net, 0).exact_p >= alpha:
        return None
    pairs = 0
    while mcnemar(net + pairs + 1, pairs + 1).exact_p < alpha:
        pairs += 1
    return net + 2 * pairs


def _settled(net: int) -> dict:
    return {"settled_up_to": most_discordant(net)}


def _needs(difference: float, discordance: float, margin: float) -> dict:
    needed = questions_paired(difference, discordance) if abs(difference) > 1e-9 else None
    return {"questions_needed": needed, "questions_not_worse": questions_not_worse(margin, discordance)}


def _words(found) -> str:
    if found.low > 0 or found.high < 0:
        return "a difference, even unpaired"
    return f"no more than: between {-100 * found.low:.1f} points worse and {100 * found.high:.1f} better"


def counts_giving(chi2: float, n: int = MMLU, decimals: int = 2) -> pd.DataFrame:
    """Every pair of discordant counts whose McNemar chi2 (continuity correction) rounds to a published one.

    pyc96/sglang#1 gives 1.97 for 14,042 questions and no counts. Columns: discordant, net (|only_a - only_b|), share
    (discordant / n), difference (net / n) and half (half width of its 95 % Wald interval), fractions.

    Raises:
        BadInput: chi2 is not positive.
    """
    import pandas as pd

    if not chi2 > 0:
        raise bad("chi2", chi2, "a positive number")
    half_digit = 0.5 * 10.0**-decimals
    least, most = max(chi2 - half_digit, 0.0), chi2 + half_digit
    pairs = []
    for discordant in range(1, count("n", n, 1) + 1):
        low, high = (1 + math.sqrt(bound * discordant) for bound in (least, most))
        nets = range(math.ceil(low - 1e-9), min(math.floor(high + 1e-9), discordant) + 1)
        pairs += [(discordant, net) for net in nets if (discordant - net) % 2 == 0]
    found = pd.DataFrame(pairs, columns=["discordant", "net"])
    spread = np.sqrt(found["discordant"] - found["net"] ** 2 / n)
    half = normal_quantile(0.95) * spread / n
    return found.assign(share=found["discordant"] / n, difference=found["net"] / n, half=half)


def subjects() -> dict[str, float]:
    """pyc96/sglang#1's wins, losses and ties over MMLU's 57 subjects, the sign test's p, and the wins it would take."""
    table = published("router_quality").set_index("variant")["value"]
    wins, losses, ties = (int(table[name]) for name in ("fused above eager", "eager above fused", "tied"))
    untied = wins + losses
    needed = next(k for k in range(math.ceil(untied / 2), untied + 1) if sign_test(k, untied - k) < 0.05)
    return {"wins": wins, "losses": losses, "ties": ties, "p": sign_test(wins, losses), "wins_needed": needed}


def gates(drop: float = 0.035, n: int = 200) -> pd.DataFrame:
    """SGLang PR #25461's test gates on 200 GSM8K questions, and how often each passes a model that lost `drop`.

    Columns: case, score, threshold, low, high (Wilson, 95 %), passes: chance that a model whose true accuracy is the
    score less `drop` reaches the threshold.
    """
    table = published("qkv_norm")
    table = table[table["metric"].str.startswith("GSM8K-200")]
    found = (
        table.pivot(index="case", columns="metric", values="value")
        .reset_index()
        .set_axis(["case", "score", "threshold"], axis=1)
    )
    intervals = [wilson(correct(score, n), n) for score in found["score"]]
    least = np.ceil(found["threshold"] * n - 1e-9)
    passes = stats.binom.sf(least - 1, n, found["score"] - drop)
    return found.assign(low=[i.low for i in intervals], high=[i.high for i in intervals], passes=passes)
