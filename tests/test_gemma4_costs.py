"""Costs against published counts, against PyTorch's own FLOP counter, and against brute force."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.gemma4 import costs, spec
from g4lab.gemma4.specs import FULL, SLIDING, TWINS

MOE = spec("26b-a4b")


@pytest.mark.parametrize(
    ("name", "count", "published_billions"),
    [
        ("26b-a4b", costs.total_parameters, 25.2),
        ("26b-a4b", costs.active_parameters, 3.8),
        ("31b", costs.total_parameters, 30.7),
        ("31b", costs.active_parameters, 30.7),
        ("e2b", costs.active_parameters, 2.3),
    ],
)
def test_published_parameter_counts(name, count, published_billions):
    # A figure with one decimal stands for everything within half a tenth of it.
    assert abs(count(spec(name)) / 1e9 - published_billions) <= 0.05


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("new_tokens", [1, 100])  # 100 exceeds the window of 64
def test_flops_are_what_pytorch_counts(name, new_tokens):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Gemma4ForCausalLM

    s = spec(name)
    config = s.hf_config()
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randint(6, 1000, (1, new_tokens)), logits_to_keep=1, use_cache=False)
    ours = sum(cost.flops for cost in costs.step_cost(s, new_tokens=new_tokens))
    # Eager attention multiplies masked pairs too: replace our visible pairs by all pairs.
    hidden_pairs = sum(
        4 * layer.num_q_heads * layer.head_dim * (new_tokens**2 - costs.visible_pairs(new_tokens, 0, layer.window))
        for layer in s.layers
    )
    # RoPE multiplies each position with head_dim/2 frequencies once per layer kind, which we leave out.
    rope = 2 * new_tokens * (s.head_dim + s.global_head_dim) // 2
    assert counter.get_total_flops() == ours + hidden_pairs + rope


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.none() | st.integers(1, 30))
def test_visible_pairs_by_counting(new_tokens, context, window):
    counted = sum(
        1
        for i, j in itertools.product(range(context, context + new_tokens), range(context + new_tokens))
        if j <= i and (window is None or i - j < window)
    )
    assert costs.visible_pairs(new_tokens, context, window) == counted


def test_decode_reads_a_window_and_no_more():
    def sliding(context):
        return _part(costs.step_cost(MOE, context=context), "sliding attention and its KV").bytes

    per_token = MOE.kv_bytes_per_token(SLIDING)
    assert sliding(0) == 2 * per_token  # the new token's KV, read and written
    assert sliding(1023) == (1023 + 2) * per_token
    assert sliding(1024) == sliding(200_000) == (1023 + 2) * per_token
    full = _part(costs.step_cost(MOE, context=200_000), "full attention and its KV").bytes
    assert full == 200_002 * MOE.kv_bytes_per_token(FULL)


def test_sharing_layers_store_nothing_but_still_read():
    s = spec("e2b")
    read = _part(costs.step_cost(s, context=10_000), "full attention and its KV").bytes
    stored = costs.kv_cache_bytes(s, 10_001)[FULL]
    assert stored == 10_001 * 3 * 2 * 512 * 2
    assert read == (10_001 * 7 + 3) * 2 * 512 * 2  # seven layers read, three write the new token


def test_steps_list_every_part_in_one_order():
    for name in ("26b-a4b", "31b", "e2b"):
        assert tuple(cost.part for cost in costs.step_cost(spec(name))) == costs.STEP_PARTS


@pytest.mark.parametrize("name", ["26b-a4b", "31b", "e2b", "tiny-moe"])
@pytest.mark.parametrize("step", [{"context": 300, "batch": 3}, {"new_tokens": 70}, {"new_tokens": 4, "context": 90}])
def test_operations_add_up_to_the_step(name, step):
    operations, parts = costs.operation_costs(spec(name), **step), costs.step_cost(spec(name), **step)
    for measure in ("bytes", "flops"):
        whole = sum(getattr(cost, measure) for cost in parts)
        assert sum(getattr(cost, measure) for cost in operations) == pytest.approx(whole, rel=1e-12)


def test_ranks_split_the_step():
    """All ranks together move and do what one does, except for what each of them keeps whole."""
    one, rank = ({c.part: c for c in costs.operation_costs(MOE, context=5000, batch=4, tp=tp)} for tp in (1, 2))
    whole = {"router", "norms"}
    for part, cost in one.items():
        shares = 1 if part in whole else 2
        assert rank[part].bytes * shares == pytest.approx(cost.bytes)
        assert rank[part].flops * shares == pytest.approx(cost.flops)
    # Eight ranks share two KV heads of the full layers, so each reads one: a half, not an eighth.
    eight = {c.part: c for c in costs.operation_costs(MOE, context=5000, batch=4, tp=8)}
    assert eight["full attention"].bytes == one["full attention"].bytes / 2
    assert eight["full KV write"].bytes * 2 == 4 * MOE.kv_bytes_per_token(FULL)
    with pytest.raises(BadInput, match="tp: got 3, expected a divisor of 16 query heads"):
        costs.operation_costs(MOE, tp=3)


def test_weights_are_read_once_per_step_whatever_the_batch():
    dense = spec("31b")
    one, many = (sum(c.bytes for c in costs.step_cost(dense, batch=b, context=0)) for b in (1, 64))
    kv = sum(dense.kv_bytes_per_token(kind) for kind in (SLIDING, FULL))
    assert one == 2 * costs.total_parameters(dense) + 2 * kv
    assert many - one == 63 * 2 * kv


def test_moe_reads_what_the_tokens_touch():
    per_expert = 30 * 3 * 2816 * 704 * 2
    assert costs.expert_bytes(MOE, 1) == pytest.approx(8 * per_expert)
    assert costs.expert_bytes(MOE, 0) == 0
    assert costs.expert_bytes(MOE, 10_000) == pytest.approx(128 * per_expert)
    count = costs.parameters(MOE)
    assert 128 * per_expert == 2 * count["experts"]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.data())
def test_distinct_experts_against_enumeration_and_distribution(num_experts, data):
    top_k = data.draw(st.integers(1, min(num_experts, 4)))
    tokens = data.draw(st.integers(0, 2))
    choices = [set(c) for c in itertools.combinations(range(num_experts), top_k)]
    unions = [set().union(*picked) for picked in itertools.product(choices, repeat=tokens)]
    exact = sum(map(len, unions)) / len(unions)
    uniform = costs.distinct_experts(num_experts, top_k, tokens)
    assert uniform == pytest.approx(exact)
    assert uniform == pytest.approx(
        costs.distinct_experts(num_experts, top_k, tokens, [top_k / num_experts] * num_experts)
    )


def test_collapsed_routing_touches_few_experts():
    always = [1.0] * 8 + [0.0] * 120
    assert costs.distinct_experts(128, 8, 1000, always) == 8
    skewed = [0.5] * 8 + [4 / 120] * 120
    assert costs.distinct_experts(128, 8, 64, skewed) < costs.distinct_experts(128, 8, 64)


@given(st.integers(1, 200), st.data(), st.floats(0, 4))
def test_zipf_routing_is_a_routing_distribution(num_experts, data, exponent):
    top_k = data.draw(st.integers(1, num_experts))
    chances = costs.zipf_routing(num_experts, top_k, exponent)
    assert sum(chances) == pytest.approx(top_k)
    assert all(0 <= later <= earlier + 1e-12 <= 1 + 2e-12 for earlier, later in itertools.pairwise(chances))
    if exponent == 0:
        assert chances == pytest.approx([top_k / num_experts] * num_experts)
    assert (
        costs.distinct_experts(num_experts, top_k, 7, chances) <= costs.distinct_experts(num_experts, top_k, 7) + 1e-9
    )


def test_bad_input_names_the_argument():
    with pytest.raises(BadInput, match=r"top_k: got 9, expected between 1 and 8"):
        costs.distinct_experts(8, 9, 1)
    with pytest.raises(BadInput, match="tokens: got -1"):
        costs.distinct_experts(8, 2, -1)
    with pytest.raises(BadInput, match="probabilities: got '3 values', expected one for each of 8"):
        costs.distinct_experts(8, 2, 1, [0.5] * 3)
    with pytest.raises(BadInput, match="add up to top_k = 2"):
        costs.distinct_experts(8, 2, 1, [0.5] * 8)
    with pytest.raises(BadInput, match="spec: got '31b', expected a model with experts"):
        costs.expert_bytes(spec("31b"), 1)
    with pytest.raises(BadInput, match="new_tokens: got 0"):
        costs.step_cost(MOE, new_tokens=0)
    with pytest.raises(BadInput, match="batch: got 0"):
        costs.step_cost(MOE, batch=0)
    with pytest.raises(BadInput, match=r"context: got 262144, expected 0 to 262143"):
        costs.step_cost(MOE, context=262_144)
    with pytest.raises(BadInput, match="context: got -1"):
        costs.kv_cache_bytes(MOE, -1)
    with pytest.raises(BadInput, match="exponent: got -1"):
        costs.zipf_routing(8, 2, -1)


def _part(step, name):
    return next(cost for cost in step if cost.part == name)
