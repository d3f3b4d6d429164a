"""Drift and flips of made-up logits and routings: against plain definitions, and zero exactly where nothing differs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from g4lab.errors import BadInput
from g4lab.quality.drift import comparable_rows, drift, first_flips, flips

V = 20
seeds = st.integers(0, 2**32 - 1)


def logits(seed, rows=4):
    return np.random.default_rng(seed).normal(0, 3, (rows, V))


def likeliest(logits, top=V):
    """ids and fp32 log-probabilities of a row's `top` tokens, as a server says them."""
    logp = log_softmax(logits, -1)
    ids = np.argsort(-logp, -1, kind="stable")[:, :top].astype(np.int32)
    return ids, np.take_along_axis(logp, ids, -1).astype(np.float32)


@given(seeds, st.floats(0, 2))
def test_a_whole_vocabulary_gives_scipys_divergence(seed, size):
    a = logits(seed)
    b = a + size * logits(seed + 1)
    found = drift(*likeliest(a), *likeliest(b), V)
    p, q = (np.exp(log_softmax(x, -1)) for x in (a, b))
    apart = np.abs(log_softmax(a, -1) - log_softmax(b, -1))
    # fp32 log-probabilities up to 40 are off by at most 2**-19 each, and KL by no more than their difference is
    assert found.largest == pytest.approx(apart.max(-1), abs=2**-17)
    assert found.mean == pytest.approx(apart.mean(-1), abs=2**-17)
    assert found.kl == pytest.approx(rel_entr(p, q).sum(-1), abs=2**-17)
    assert (found.same_top == (a.argmax(-1) == b.argmax(-1))).all()


@given(seeds, st.integers(1, V), st.floats(0, 3))
def test_fewer_tokens_bound_the_divergence_from_below(seed, top, size):
    a = logits(seed)
    b = a + size * logits(seed + 1)
    part, whole = (drift(*likeliest(a, k), *likeliest(b, k), V) for k in (top, V))
    some = np.isfinite(part.kl)  # rows without a common token have no number
    assert (part.kl >= 0).all()
    assert (part.kl[some] <= whole.kl[some] + 2**-17).all()
    assert (part.largest[some] <= whole.largest[some]).all()


@given(seeds, st.integers(1, V))
def test_equal_is_zero_and_the_order_of_the_tokens_is_no_matter(seed, top):
    ids, logp = likeliest(logits(seed), top)
    assert not any(part.any() for part in drift(ids, logp, ids.copy(), logp.copy(), V)[:3])
    found = drift(ids, logp, ids[:, ::-1], logp[:, ::-1], V)
    assert not any(part.any() for part in found[:3])


@given(seeds)
def test_size_is_symmetric_and_a_small_divergence_is_seen(seed):
    a = likeliest(logits(seed))
    b = likeliest(logits(seed) + 1e-4 * logits(seed + 1))
    there, back = drift(*a, *b, V), drift(*b, *a, V)
    assert (there.largest == back.largest).all()
    assert (there.mean == back.mean).all()
    assert (there.kl > 0).all()
    assert (there.kl < 1e-5).all()


def test_not_a_number_is_infinitely_far_and_equal_infinities_are_not():
    ids, logp = likeliest(logits(3, rows=3))
    other = logp.copy()
    other[0, 5] = np.nan
    other[1, 5] = -np.inf
    logp[2, 5] = other[2, 5] = -np.inf
    found = drift(ids, logp, ids, other, V)
    assert np.isinf(found.kl[:2]).all()
    assert np.isinf(found.largest[:2]).all()
    assert found.kl[2] == found.largest[2] == 0


def test_no_common_token_is_infinitely_far():
    ids, logp = likeliest(logits(3, rows=1), 4)
    assert np.isinf(drift(ids, logp, (ids + 1 + ids.max()) % 60, logp, 60).kl).all()


def test_shapes_are_checked():
    ids, logp = likeliest(logits(0))
    with pytest.raises(BadInput, match=r"ids_b: got \(3, 20\), expected the shape of ids_a, \(4, 20\)"):
        drift(ids, logp, ids[:3], logp, V)
    with pytest.raises(BadInput, match="vocab_size: got 19, expected at least 20"):
        drift(ids, logp, ids, logp, V - 1)
    with pytest.raises(BadInput, match="experts_b"):
        flips(np.zeros((2, 3, 4)), np.zeros((2, 3, 2)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_rows_compare_while_both_have_read_the_same(a, b):
    b = (b + a)[: len(a)]
    prompt = [9, 9, 9]
    rows = comparable_rows(len(prompt), a, b)
    assert 0 < rows <= len(prompt) - 1 + len(a)
    for row in range(len(prompt) - 1 + len(a)):
        assert (row < rows) == ((prompt + a)[: row + 1] == (prompt + b)[: row + 1])


def routing(seed, experts=8, top=3):
    random = np.random.default_rng(seed)
    return np.array([[random.permutation(experts)[:top] for _ in range(5)] for _ in range(7)])


@given(seeds, seeds)
def test_flips_are_other_sets(seed_a, seed_b):
    a, b = routing(seed_a), routing(seed_b)
    found = flips(a, b)
    assert found.tolist() == [[set(x) != set(y) for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
    assert (found == flips(b, a)).all()
    assert not flips(a, a[..., ::-1]).any()
    assert first_flips(found).tolist() == [[*row, True].index(True) for row in found.tolist()]
