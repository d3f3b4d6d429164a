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
from g4lab.gemma4.specs import FULL, SLIDING, QKVMode, Spec
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
# What operation_costs tells apart within a part.
_WITHIN = {
    "sliding attention": "sliding attention and its KV",
    "sliding KV write": "sliding attention and its KV",
    "full attention": "full attention and its KV",
    "full KV write": "full attention and its KV",
    "router": "router and experts",
    "experts": "router and experts",
    "per-layer embedding": "per-layer input",
}


@dataclass(frozen=True)
class Cost:
    """Bytes moved and FLOPs done by one part of the model, or by one operation in it, in one step."""

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


def operation_costs(
    spec: Spec,
    *,
    new_tokens: int = 1,
    context: int = 0,
    batch: int = 1,
    dtype_bytes: float = 2,
    probabilities: Sequence[float] | None = None,
    tp: int = 1,
) -> list[Cost]:
    """Bytes and FLOPs of one forward pass of `batch` sequences, by operation.

    What different kernels do stays apart: attention and the KV write, the router and the experts. Decode is
    `new_tokens=1` with `context` keys already cached; prefill is `new_tokens` = prompt length with none. The LM head
    runs on the last token of each sequence. Divide by `batch * new_tokens` for the cost of a token.

    Args:
        dtype_bytes: bytes of a weight, key or value (2 for bf16).
        probabilities: routing distribution, as in `distinct_experts`.
        tp: ranks of tensor parallelism; the costs are one rank's. Projections, experts and the LM head are split, the
            router and the norms are whole on every rank, and so is a KV head where there are fewer than ranks. What the
            ranks send each other is left out.

    Raises:
        BadInput: a count out of range, more positions than the model has, or a `tp` that the heads cannot be split by.
    """
    _check(spec, new_tokens, context, batch)
    tokens, count = batch * new_tokens, parameters(spec)

    def dense(part: str, weights: float, rows: int = tokens) -> Cost:
        return Cost(part, weights * dtype_bytes, 2.0 * weights * rows)

    looked_up = tokens * spec.num_hidden_layers * spec.hidden_size_per_layer_input
    router = tokens * spec.num_hidden_layers * spec.num_experts * spec.hidden_size
    return [
        dense("attention projections", _projections(spec, tp)),
        *_attention(spec, SLIDING, "sliding", new_tokens, context, batch, dtype_bytes, tp),
        *_attention(spec, FULL, "full", new_tokens, context, batch, dtype_bytes, tp),
        dense("dense MLP", count["dense MLP"] / tp),
        Cost("router", count["router"] * dtype_bytes, 2.0 * router),  # its scales move bytes and do no matrix work
        _experts(spec, tokens, dtype_bytes, probabilities, tp),
        dense("per-layer input", count["per-layer input"] / tp),
        Cost("per-layer embedding", looked_up * dtype_bytes, 0.0),
        dense("LM head", count["embedding"] / tp, batch),
        Cost("norms", count["norms"] * dtype_bytes, 0.0),
    ]


def step_cost(spec: Spec, **step) -> list[Cost]:
    """`operation_costs`, with the same arguments and errors, added up to the parts of the model (STEP_PARTS)."""
    sums = {part: [0.0, 0.0] for part in STEP_PARTS}
    for cost in operation_costs(spec, **step):
        part = sums[_WITHIN.get(cost.part, cost.part)]
        part[0] += cost.bytes
        part[1] += cost.flops
    return [Cost(part, *both) for part, both in sums.items()]


def _projections(spec: Spec, tp: int) -> float:
    """Weights of Q, K, V and O on one rank, all layers."""
    weights = 0.0
    for layer in spec.layers:
        owned = {QKVMode.QKV: 2, QKVMode.QK: 1, QKVMode.Q: 0}[layer.qkv_mode]
        heads = 2 * layer.num_q_heads / tp + owned * layer.kv_heads(tp)
        weights += spec.hidden_size * layer.head_dim * heads
    return weights


def _experts(spec: Spec, tokens: int, dtype_bytes: float, probabilities: Sequence[float] | None, tp: int) -> Cost:
    if not spec.is_moe:
        return Cost("experts", 0.0, 0.0)
    used = tokens * spec.num_hidden_layers * spec.top_k_experts * 3 * spec.moe_intermediate_size * spec.hidden_size
    return Cost("experts", expert_bytes(spec, tokens, dtype_bytes, probabilities) / tp, 2.0 * used / tp)


def _attention(
    spec: Spec, kind: str, name: str, new_tokens: int, context: int, batch: int, dtype_bytes: float, tp: int
) -> list[Cost]:
    """Scores and weighted values of all layers of one kind with the KV they read; then the KV they write."""
    read = written = flops = 0.0
    for layer in spec.of_kind(kind):
        row = 2 * layer.kv_heads(tp) * layer.head_dim * dtype_bytes  # K and V of one token
        # The oldest new token sees window - 1 cached keys; all new keys are read once by the queries after them.
        cached = context if layer.window is None else min(context, layer.window - 1)
        read += row * (cached + new_tokens)
        written += row * new_tokens if layer.owns_kv else 0
        flops += 4.0 * layer.num_q_heads / tp * layer.head_dim * visible_pairs(new_tokens, context, layer.window)
    return [Cost(f"{name} attention", batch * read, batch * flops), Cost(f"{name} KV write", batch * written, 0.0)]


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
