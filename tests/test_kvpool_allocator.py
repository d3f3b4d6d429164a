"""The two pools in miniature under random operations: they keep their invariants, stay in step with SGLang's own
allocator, and find the frozen-KV bug."""

import types

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from g4lab import env
from g4lab.errors import BadInput
from g4lab.kvpool.allocator import TwoPools
from g4lab.kvpool.sentinel import PADDING, faults

WINDOW = 5


class Serving(RuleBasedStateMachine):
    """Random admissions, chunks, decode steps, drafts, windows, retractions and ends."""

    page_size = 1

    def __init__(self):
        super().__init__()
        self.pools = TwoPools(64, 24, WINDOW, self.page_size)
        self.tokens = {}  # what each request should hold

    @rule(tokens=st.integers(1, 12))
    def admit(self, tokens):
        if request := self.pools.admit(tokens):
            self.tokens[request] = tokens

    def some(self, data):
        return data.draw(st.sampled_from(sorted(self.tokens)))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), tokens=st.integers(1, 9))
    def extend_or_decode(self, data, tokens):
        request = self.some(data)
        self.pools.slide(request)
        if self.pools.extend(request, tokens):
            self.tokens[request] += tokens

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), drafts=st.integers(1, 4))
    def verify(self, data, drafts):
        request = self.some(data)
        if self.pools.extend(request, drafts):
            accepted = data.draw(st.integers(0, drafts))
            self.pools.reject(request, drafts - accepted)
            self.tokens[request] += accepted

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def free(self, data):
        request = self.some(data)
        self.pools.free(request)
        del self.tokens[request]

    @invariant()
    def nothing_is_owned_twice_or_lost(self):
        pools, page = self.pools, self.page_size
        assert {request: len(row) for request, row in pools.rows.items()} == self.tokens
        owned = {request: set((row // page).tolist()) for request, row in pools.rows.items()}
        held = [p for pages in owned.values() for p in pages]
        assert sorted([*held, *pools.free_full]) == list(range(1, pools.full_rows // page))
        alive = [set((pools.mapping[row[pools.evicted[r] :]] // page).tolist()) for r, row in pools.rows.items()]
        assert sorted([p for pages in alive for p in pages] + [*pools.free_sliding]) == list(
            range(1, pools.sliding_rows // page)
        )

    @invariant()
    def the_mapping_is_of_live_tokens_alone(self):
        mapped = np.flatnonzero(self.pools.mapping[:-1])
        live = [row[self.pools.evicted[request] :] for request, row in self.pools.rows.items()]
        assert set(np.concatenate([*live, []]).tolist()) <= set(mapped.tolist())
        assert set((mapped // self.page_size).tolist()) == {s // self.page_size for row in live for s in row.tolist()}
        assert self.pools.mapping[-1] == -1

    @invariant()
    def a_draft_that_follows_reads_right(self):
        if self.tokens:
            assert list(faults(self.pools.read(sorted(self.tokens)))) == []


class PagedServing(Serving):
    page_size = 4


class StaleDraft(Serving):
    """A draft whose backend does not follow the pool: wrong as soon as a slot has two numbers."""

    @invariant()
    def a_draft_reads_right(self):
        if self.tokens:
            assert list(faults(self.pools.read(sorted(self.tokens), follows=False))) == []


@pytest.mark.parametrize("machine", [Serving, PagedServing])
def test_random_operations_keep_the_pools_whole(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=25))


def test_random_operations_find_the_frozen_kv_bug():
    found = settings(max_examples=100, stateful_step_count=25, database=None, phases=[Phase.generate])
    with pytest.raises(AssertionError, match=r"FULL-pool slot that was never translated|that of row"):
        run_state_machine_as_test(StaleDraft, settings=found)


@settings(max_examples=30)
@given(page_size=st.sampled_from([1, 4]), steps=st.integers(8, 40))
def test_the_bug_shows_once_a_window_has_slid(page_size, steps):
    """Decoded past the sliding pool's size, a request has slots in the full pool that the sliding one has not."""
    pools = TwoPools(80, 16, WINDOW, page_size)
    request = pools.admit(4)
    for _ in range(steps):
        pools.slide(request)
        assert pools.extend(request)
    assert list(faults(pools.read([request]))) == []
    stale = list(faults(pools.read([request], follows=False)))
    row = pools.rows[request]
    if row.max() >= pools.sliding_rows:
        assert any(f"of a pool that has {pools.sliding_rows - page_size}, a FULL-pool slot" in str(f) for f in stale)
    elif (pools.mapping[row[pools.evicted[request] :]] == row[pools.evicted[request] :]).all():
        assert stale == []  # every slot has the same number in both pools yet


def test_a_full_pool_takes_nothing():
    pools = TwoPools(10, 4, WINDOW)
    assert pools.admit(5) is None  # the sliding pool binds
    request = pools.admit(4)
    assert request != PADDING
    assert not pools.extend(request)
    assert (len(pools.free_full), len(pools.free_sliding), len(pools.rows[request])) == (6, 0, 4)
    pools.free(request)
    assert (len(pools.free_full), len(pools.free_sliding)) == (10, 4)
    assert list(faults(pools.read([]))) == []


@pytest.mark.parametrize("wrong", [{"window": 0}, {"page_size": 0}, {"full_tokens": 3}, {"sliding_tokens": 1}])
def test_bad_pools(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        TwoPools(**{"full_tokens": 8, "sliding_tokens": 8, "window": 2, "page_size": 4} | wrong)


class Real:
    """SGLang's own two pools and their allocator on the CPU, with the same calls as the scheduler makes."""

    def __init__(self, full, sliding, page_size):
        import torch
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
        from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

        self.torch, self.page_size = torch, page_size
        pool = SWAKVPool(
            full, sliding, page_size, torch.float32, head_num=1, head_dim=1, swa_attention_layer_ids=[0],
            full_attention_layer_ids=[1], device="cpu",
        )  # fmt: skip
        self.allocator = SWATokenToKVPoolAllocator(full, sliding, page_size, torch.float32, "cpu", pool, False)
        self.rows = {}

    def extend(self, request, tokens):
        torch, row = self.torch, self.rows.get(request, self.torch.empty(0, dtype=self.torch.int64))
        before, after = torch.tensor([len(row)]), torch.tensor([len(row) + tokens])
        last = row[-1:] if len(row) else torch.tensor([-1])
        if self.page_size == 1:
            slots = self.allocator.alloc(tokens)
        elif tokens == 1 and len(row):
            slots = self.allocator.alloc_decode(after, after, last)
        else:
            slots = self.allocator.alloc_extend(before, before, after, after, last, tokens)
        self.rows[request] = torch.cat([row, slots])

    def slide(self, request, start, end):
        self.allocator.free_swa_segment(self.rows[request][start:end], start_pos=start)

    def free(self, request, evicted):
        row = self.rows.pop(request)
        self.allocator.free_full_segment(row[:evicted], start_pos=0)
        self.allocator.free_segment(row[evicted:], start_pos=evicted)


@pytest.mark.skipif(env.has_gpu(), reason="its paged kernels are interpreted here; with a GPU they want its memory")
@pytest.mark.parametrize("page_size", [1, 4])
def test_the_same_slots_as_sglangs_own_allocator(page_size):
    rng = np.random.default_rng(7)
    ours, real = TwoPools(96, 40, WINDOW, page_size), Real(96, 40, page_size)
    done = types.SimpleNamespace(extended=0, slid=0, freed=0)
    for _ in range(120):
        requests = sorted(ours.rows)
        choice = rng.integers(4)
        if choice == 0 and len(requests) < 5:
            tokens = int(rng.integers(1, 14))
            if request := ours.admit(tokens):
                real.extend(request, tokens)
        elif choice in (1, 2) and requests:
            request, tokens = int(rng.choice(requests)), int(rng.choice([1, 1, 1, 6]))
            before = ours.evicted[request]
            ours.slide(request)
            if ours.evicted[request] > before:
                real.slide(request, before, ours.evicted[request])
                done.slid += 1
            if ours.extend(request, tokens):
                real.extend(request, tokens)
                done.extended += 1
        elif requests:
            request = int(rng.choice(requests))
            evicted = ours.evicted[request]
            ours.free(request)
            real.free(request, evicted)
            done.freed += 1
        assert {r: row.tolist() for r, row in ours.rows.items()} == {r: row.tolist() for r, row in real.rows.items()}
        mapped = real.allocator.full_to_swa_index_mapping
        for row in ours.rows.values():
            assert ours.mapping[row].tolist() == mapped[row].tolist()
        assert len(ours.free_full) * page_size == real.allocator.full_available_size()
        assert len(ours.free_sliding) * page_size == real.allocator.swa_available_size()
    assert min(done.extended, done.slid, done.freed) >= 10, done
