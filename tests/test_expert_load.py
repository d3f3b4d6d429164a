"""Expert load: what arithmetic says of ids is what the kernel's placing does, and what closed forms expect."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab import env
from g4lab.errors import BadInput
from g4lab.gemma4.costs import zipf_routing
from g4lab.tuning import expert_load

DEVICE = "cuda" if env.has_gpu() else "cpu"


def uniform_ids(tokens, experts, top_k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).argsort(1)[:, :top_k].contiguous()


@settings(max_examples=30)
@given(
    tokens=st.integers(0, 200), experts=st.integers(1, 256), top_k=st.integers(1, 8), seed=st.integers(0, 9),
    block_m=st.sampled_from([16, 32, 128]), skew=st.integers(1, 300),
)  # fmt: skip
def test_the_kernel_places_what_arithmetic_counts(tokens, experts, top_k, seed, block_m, skew):
    """Any ids: skewed ones, ones that no expert has, the same expert twice, no token at all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, min(experts, skew) + 1, (tokens, top_k), generator=generator)
    counted = expert_load.of_counts(expert_load.counts(ids, experts), block_m)
    assert expert_load.of_ids(ids.to(DEVICE), experts, block_m) == counted
    assert counted.pairs <= counted.rows < counted.pairs + counted.touched * block_m + 1


def test_by_hand():
    ids = torch.tensor([[0, 1], [0, 2], [0, 7]])
    load = expert_load.of_ids(ids.to(DEVICE), 8, 2)
    assert (load.pairs, load.touched, load.busiest, load.blocks) == (6, 4, 3, 5)
    assert (load.rows, load.wasted, load.reads) == (10, pytest.approx(0.4), pytest.approx(5 / 4))
    moved = expert_load.bytes_touched(load, hidden=10, width=3)
    assert moved.loc["gate_up"].tolist() == pytest.approx([4 * 60 * 2e-6, 5 * 60 * 2e-6, 6 * 13 * 2e-6])
    assert moved.loc["down"].tolist() == pytest.approx([4 * 30 * 2e-6, 5 * 30 * 2e-6, 6 * 13 * 2e-6])


@pytest.mark.parametrize(("experts", "top_k"), [(128, 8), (8, 2), (5, 5), (256, 1)])
@pytest.mark.parametrize("tokens", [1, 3, 16, 100])
def test_uniform_routing_as_expected(tokens, experts, top_k):
    """Mean of 400 batches against the closed form: within 5 standard errors, which chance leaves once in a million."""
    seen = [expert_load.counts(uniform_ids(tokens, experts, top_k, seed), experts) for seed in range(400)]
    for block_m in (16, 64):
        loads = [expert_load.of_counts(pairs, block_m) for pairs in seen]
        mean = expert_load.expected(tokens, experts, top_k, block_m)
        assert mean.pairs == loads[0].pairs
        for name in ("touched", "blocks"):
            found = torch.tensor([getattr(load, name) for load in loads]).double()
            error = (found.std() / len(found) ** 0.5).item()
            assert abs(found.mean().item() - getattr(mean, name)) <= 5 * error + 1e-9, (name, found.mean(), mean)


def test_blocks_of_one_row_and_of_a_whole_batch():
    """In blocks of one row nothing is padded; a block that takes all tokens is one for each expert touched."""
    for chances in (None, zipf_routing(32, 4, 1.0)):
        one = expert_load.expected(50, 32, 4, 1, chances)
        assert one.blocks == pytest.approx(one.pairs)
        assert one.wasted == pytest.approx(0, abs=1e-12)
        whole = expert_load.expected(50, 32, 4, 50, chances)
        assert whole.blocks == pytest.approx(whole.touched)
    certain = expert_load.expected(7, 2, 1, 4, [1.0, 0.0])
    assert (certain.touched, certain.blocks) == (1, 2)


def test_skew_touches_fewer_experts():
    even, skewed = (expert_load.expected(64, 128, 8, 16, p) for p in (None, zipf_routing(128, 8, 1.2)))
    assert skewed.touched < even.touched


def test_table():
    batches = {"uniform": [uniform_ids(t, 16, 2) for t in (1, 40)]}
    frame = expert_load.table(batches, 16, (16, 64))
    assert list(frame.tokens) == [1, 1, 40, 40]
    first = frame.iloc[0]
    assert (first.pairs, first.touched, first.blocks, first.wasted_pct) == (2, 2, 2, 100 * 30 / 32)


def test_bad_blocks():
    for call in (lambda: expert_load.expected(4, 8, 2, 0), lambda: expert_load.of_counts(torch.ones(2).long(), 0)):
        with pytest.raises(BadInput, match="block_m: got 0, expected 1 or more"):
            call()
