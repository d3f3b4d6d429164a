"""Shapes of the expert layer as data, and how tokens choose experts: what the tuner ranks on and the benchmark times.

Routing is drawn from a named distribution, in which every token's experts are distinct:

- `uniform`: every set of experts is as likely.
- `zipf` or `zipf:S`: the expert at rank r (of a permutation that the seed draws) has popularity 1 / r^S, S = 1.
- `recorded:FILE`: popularity as counted; FILE is JSON, {"source": what was counted, "counts": [one for each expert]}.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from g4lab.errors import Unavailable, bad
from g4lab.gemma4 import spec

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
SIZES = tuple(2**i for i in range(14))  # tokens: 1 to 8192
# Halfway between neighbours of the powers of two, where a lookup of the nearest key is furthest from any.
OFF_KEY = tuple(3 * 2**i for i in range(12))  # 3 to 6144
ROUTINGS = ("uniform", "zipf", "recorded")
DRAWS = 8192  # tokens drawn to learn how often an expert is chosen


@dataclass(frozen=True)
class MoEShape:
    """`tokens` rows of `hidden` through top_k of num_experts experts of `width`, which is one rank's of `tp`.

    routing: a name as the module says. dtype: torch's name, of activations and weights.
    """

    tokens: int
    hidden: int
    width: int
    num_experts: int
    top_k: int
    routing: str = "uniform"
    dtype: str = "bfloat16"
    tp: int = 1

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.tokens} tokens tp{self.tp} {self.routing}"

    @property
    def pairs(self) -> int:
        """(token, expert) pairs."""
        return self.tokens * self.top_k

    @property
    def flops(self) -> int:
        """Multiplies and adds of gate, up and down for every pair."""
        return 6 * self.pairs * self.hidden * self.width

    @property
    def touched(self) -> float:
        """Experts that at least one token chooses, expected under the routing."""
        chosen = chances(self.routing, self.num_experts, self.top_k)
        return float(np.sum(1 - (1 - chosen) ** self.tokens))

    @property
    def bytes(self) -> float:
        """The least traffic: the touched experts' weights, x and the result, each moved once."""
        weights = 3 * self.touched * self.hidden * self.width
        return (weights + 2 * self.tokens * self.hidden) * BYTES[self.dtype]


def of(
    model: str = "26b-a4b", tp: int = 1, *, routing: str = "uniform", sizes: Sequence[int] = SIZES
) -> tuple[MoEShape, ...]:
    """The expert layer of a model on one of `tp` ranks, for each number of tokens.

    Raises:
        BadInput: an unknown model or one without experts, a tp that does not divide the experts' width, an unknown
            routing.
    """
    which = spec(model)
    if not which.is_moe:
        raise bad("model", model, "a model with experts")
    width = which.moe_intermediate_size
    if tp < 1 or width % tp:
        raise bad("tp", tp, f"a divisor of the experts' width {width}")
    popularity(routing, which.num_experts)
    layer = (which.hidden_size, width // tp, which.num_experts, which.top_k_experts)
    return tuple(MoEShape(tokens, *layer, routing=routing, tp=tp) for tokens in sizes)


def popularity(name: str, num_experts: int, seed: int = 0) -> np.ndarray:
    """What a draw gives each expert, [E] float64, its sum 1.

    Raises:
        BadInput: a routing that is not known, or a file that does not fit.
        Unavailable: `recorded` without a file: no counts are committed.
    """
    kind, _, detail = name.partition(":")
    if kind == "uniform" and not detail:
        weights = np.ones(num_experts)
    elif kind == "zipf":
        ranks = np.random.default_rng(seed).permutation(num_experts) + 1
        weights = ranks ** -_exponent(name, detail)
    elif kind == "recorded" and not detail:
        raise Unavailable("routing recorded: no expert counts are committed; recorded:FILE reads them from a JSON file")
    elif kind == "recorded":
        weights = _recorded(Path(detail), num_experts)
    else:
        raise bad("routing", name, "uniform, zipf, zipf:S or recorded:FILE")
    return weights / weights.sum()


def _exponent(name: str, text: str) -> float:
    try:
        s = float(text or 1)
    except ValueError:
        s = -1.0
    if not 0 <= s <= 10:
        raise bad("routing", name, "zipf:S with S from 0 to 10")
    return s


def _recorded(file: Path, num_experts: int) -> np.ndarray:
    try:
        found = json.loads(file.read_text())
        counts, source = np.asarray(found["counts"], float), found["source"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad("routing", f"recorded:{file}", f'a JSON file with "source" and "counts" ({error!r})') from None
    if counts.shape != (num_experts,) or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        raise bad("routing", f"recorded:{file}", f"a count of 0 or more for each of {num_experts} experts")
    if not isinstance(source, str) or not source:
        raise bad("routing", f"recorded:{file}", "a source that says what was counted")
    return counts


def described(name: str, num_experts: int, seed: int = 0) -> str:
    """The distribution in words, with the source of counts. Raises as `popularity`."""
    share = popularity(name, num_experts, seed)
    kind, _, detail = name.partition(":")
    top = f"the most popular of {num_experts} experts has {share.max():.1%} of the draws"
    if kind == "recorded":
        return f"recorded: {json.loads(Path(detail).read_text())['source']}; {top}"
    exponent = f"popularity 1 / rank^{float(detail or 1):g}, ranks from seed {seed}; {top}"
    return {"uniform": f"uniform over {num_experts} experts", "zipf": f"zipf: {exponent}"}[kind]


def routing(name: str, tokens: int, num_experts: int, top_k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Experts drawn for each token, distinct, and their weights.

    Returns:
        ids: int32 [T, K]: K draws without replacement, each by popularity among the experts that are left.
        weights: float32 [T, K], the softmax of normal logits.

    Raises:
        BadInput: a top_k of more experts than the distribution has; else as `popularity`.
    """
    share = popularity(name, num_experts, seed)
    if not 1 <= top_k <= np.count_nonzero(share):
        raise bad("top_k", top_k, f"1 to {np.count_nonzero(share)}, the experts that routing {name} chooses at all")
    rng = np.random.default_rng(seed + 1)
    # The first K arrivals of clocks with these rates are such draws.
    with np.errstate(divide="ignore"):
        arrival = rng.standard_exponential((tokens, num_experts)) / share
    ids = np.argsort(arrival, axis=1)[:, :top_k].astype(np.int32)
    weights = np.exp(rng.standard_normal((tokens, top_k)))
    return ids, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@functools.lru_cache
def chances(name: str, num_experts: int, top_k: int) -> np.ndarray:
    """How likely a token is to choose each expert, [E], their sum top_k; counted in DRAWS drawn tokens, or exact for
    `uniform`. Raises as `routing`."""
    if name == "uniform":
        return np.full(num_experts, top_k / num_experts)
    ids, _ = routing(name, DRAWS, num_experts, top_k)
    return np.bincount(ids.ravel(), minlength=num_experts) / DRAWS
