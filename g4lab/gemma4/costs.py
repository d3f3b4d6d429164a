"""What a Gemma-4 model costs by arithmetic: parameters, and the bytes and FLOPs of a prefill or decode step.

Conventions. A multiply-add is 2 FLOPs; the FLOPs of norms, RoPE, softmax and activations are left out. Bytes are the
least any engine can move: every weight once per step, every visible key and value once per layer that reads it, every
new key and value written once; activations are taken to stay on chip. Times follow from a machine's rates, not from
here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from g4lab.errors import bad
from g4lab.gemma4.specs import FULL, SLIDING, Spec
from g4lab.gemma4.tensors import PARTS, tensors

STEP_PARTS = (
    "attention projections",
    "sliding attention and its KV",
    "full attention and its KV",
    "dense MLP",
    "router and experts",
    "per-layer input",
    "LM head",
    "norms",
)


@dataclass(frozen=True)
class Cost:
    """Bytes moved and FLOPs done by one part of the model in one step."""

    part: str
    bytes: float
    flops: float


def parameters(spec: Spec) -> dict[str, int]:
    """Learned parameters by part of the model, tied embedding and LM head counted once; zero parts are left in."""
    count = dict.fromkeys(PARTS, 0)
    for tensor in tensors(spec):
        if tensor.learned:
            count[tensor.part] += tensor.size
    return count


def total_parameters(spec: Spec) -> int:
    """All learned parameters of the text model."""
    return sum(parameters(spec).values())


def active_parameters(spec: Spec) -> int:
    """Parameters that one token passes through: `top_k_experts` of the experts, and no per-layer embedding table.

    That is the count behind the published "3.8B active" of 26B-A4B and "2.3B effective" of E2B.
    """
    count = parameters(spec)
    idle_experts = count["experts"] * (1 - spec.top_k_experts / spec.num_experts) if spec.is_moe else 0
    return round(total_parameters(spec) - idle_experts - count["per-layer embedding"])


def distinct_experts(num_experts: int, top_k: int, tokens: int, probabilities: Sequence[float] | None = None) -> float:
    """Expected number of distinct experts that `tokens` independently routed tokens touch in one layer.

    Args:
        probabilities: [num_experts], the chance that a token picks each expert; they add up to `top_k`. None stands for
            uniform routing, where it is num_experts * (1 - (1 - top_k / num_experts) ** tokens).

    Raises:
        BadInput: `top_k` above `num_experts`, negative `tokens`, or impossible `probabilities`.
    """
    if not 1 <= top_k <= num_experts:
        raise bad("top_k", top_k, f"between 1 and {num_experts} (the number of experts)")
    if tokens < 0:
        raise bad("tokens", tokens, "zero or more")
    if probabilities is None:
        return num_experts * (1 - (1 - top_k / num_experts) ** tokens)
    if len(probabilities) != num_experts:
        raise bad("probabilities", f"{len(probabilities)} values", f"one for each of {num_experts} experts")
    if not all(0 <= p <= 1 for p in probabilities) or not math.isclose(sum(probabilities), top_k, rel_tol=1e-6):
        raise bad(
            "probabilities", f"a sum of {sum(probabilities):g}", f"values in [0, 1] that add up to top_k = {top_k}"
        )
    return sum(1 - (1 - p) ** tokens for p in probabilities)


def zipf_routing(num_experts: int, top_k: int, exponent: float) -> list[float]:
    """Chances [num_experts] that a token picks each expert, falling as rank ** -exponent, at most 1, adding to `top_k`.

    Exponent 0 is uniform routing. Raises BadInput for a negative exponent.
    """
    if exponent < 0:
        raise bad("exponent", exponent, "zero or more")
    left, chances = float(top_k), []
    weights = [rank**-exponent for rank in range(1, num_experts + 1)]
    for index, weight in enumerate(weights):  # the favourites first: what one cannot take is shared by the rest
        chances.append(min(1.0, left * weight / sum(weights[index:])))
        left -= chances[-1]
    return chances


def expert_bytes(
    spec: Spec, tokens: int, dtype_bytes: float = 2, probabilities: Sequence[float] | None = None
) -> float:
    """Expected bytes of expert weights that a step over `tokens` tokens reads, over all layers.

    Arguments and errors as `distinct_experts`; BadInput also for a model without experts.
    """
    if not spec.is_moe:
        raise bad("spec", spec.name, "a model with experts")
    one_expert = 3 * spec.hidden_size * spec.moe_intermediate_size * dtype_bytes
    touched = distinct_experts(spec.num_experts, spec.top_k_experts, tokens, probabilities)
    return spec.num_hidden_layers * touched * one_expert


def kv_cache_bytes(spec: Spec, context: int, dtype_bytes: float = 2, tp: int = 1) -> dict[str, float]:
    """Bytes of KV that one sequence of `context` tokens keeps on one rank, by layer kind; a window stops the growth."""
    if context < 0:
        raise bad("context", context, "zero or more tokens")
    kept = {SLIDING: min(context, spec.sliding_window), FULL: context}
    return {kind: n * spec.kv_bytes_per_token(kind, dtype_bytes, tp) for kind, n in kept.items()}


def step_cost(
    spec: Spec,
    *,
    new_tokens: int = 1,
    context: int = 0,
    batch: int = 1,
    dtype_bytes: float = 2,
    probabilities: Sequence[float] | None = None,
) -> list[Cost]:
    """Bytes and FLOPs of one forward pass of `batch` sequences, by part.

    Decode is `new_tokens=1` with `context` keys already cached; prefill is `new_tokens` = prompt length with none. The
    LM head runs on the last token of each sequence. Divide by `batch * new_tokens` for the cost of a token.

    Args:
        dtype_bytes: bytes of a weight, key or value (2 for bf16).
        probabilities: routing distribution, as in `distinct_experts`.

    Raises:
        BadInput: a count out of range, or more positions than the model has.
    """
    _check(spec, new_tokens, context, batch)
    tokens, count = batch * new_tokens, parameters(spec)

    def dense(part: str, weights: int) -> Cost:
        return Cost(part, weights * dtype_bytes, 2.0 * weights * tokens)

    head = Cost("LM head", count["embedding"] * dtype_bytes, 2.0 * count["embedding"] * batch)
    ple = dense("per-layer input", count["per-layer input"])
    rows = tokens * spec.num_hidden_layers * spec.hidden_size_per_layer_input  # looked up in the per-layer embedding
    return [
        dense("attention projections", count["attention"]),
        _attention(spec, SLIDING, "sliding attention and its KV", new_tokens, context, batch, dtype_bytes),
        _attention(spec, FULL, "full attention and its KV", new_tokens, context, batch, dtype_bytes),
        dense("dense MLP", count["dense MLP"]),
        _moe(spec, tokens, dtype_bytes, probabilities),
        Cost(ple.part, ple.bytes + rows * dtype_bytes, ple.flops),
        head,
        Cost("norms", count["norms"] * dtype_bytes, 0.0),
    ]


def _moe(spec: Spec, tokens: int, dtype_bytes: float, probabilities: Sequence[float] | None) -> Cost:
    """Router and the experts it picks. The router's scales move bytes and do no matrix work."""
    if not spec.is_moe:
        return Cost("router and experts", 0.0, 0.0)
    moved = parameters(spec)["router"] * dtype_bytes + expert_bytes(spec, tokens, dtype_bytes, probabilities)
    rows = spec.num_experts + spec.top_k_experts * 3 * spec.moe_intermediate_size  # of H weights each, per token
    return Cost("router and experts", moved, 2.0 * tokens * spec.num_hidden_layers * rows * spec.hidden_size)


def _attention(spec: Spec, kind: str, part: str, new_tokens: int, context: int, batch: int, dtype_bytes: float) -> Cost:
    """Scores and weighted values of all layers of one kind, and the KV they read and write."""
    moved = flops = 0.0
    for layer in spec.of_kind(kind):
        row = 2 * layer.num_kv_heads * layer.head_dim * dtype_bytes  # K and V of one token
        # The oldest new token sees window - 1 cached keys; all new keys are read once by the queries after them.
        cached = context if layer.window is None else min(context, layer.window - 1)
        moved += row * (cached + new_tokens) + (row * new_tokens if layer.owns_kv else 0)
        flops += 4.0 * layer.num_q_heads * layer.head_dim * visible_pairs(new_tokens, context, layer.window)
    return Cost(part, batch * moved, batch * flops)


def visible_pairs(new_tokens: int, context: int, window: int | None) -> int:
    """Query-key pairs of causal attention: new token i sees min(context + i + 1, window) keys."""
    whole = new_tokens * context + new_tokens * (new_tokens + 1) // 2
    if window is None:
        return whole
    clipped = min(new_tokens, max(0, window - context))  # queries that still see every key
    return clipped * context + clipped * (clipped + 1) // 2 + (new_tokens - clipped) * window


def _check(spec: Spec, new_tokens: int, context: int, batch: int) -> None:
    if new_tokens < 1:
        raise bad("new_tokens", new_tokens, "1 or more")
    if batch < 1:
        raise bad("batch", batch, "1 or more")
    limit = spec.max_position_embeddings
    if not 0 <= context <= limit - new_tokens:
        raise bad("context", context, f"0 to {limit - new_tokens} ({spec.name} has {limit} positions)")
