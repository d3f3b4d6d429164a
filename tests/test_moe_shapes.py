"""Shapes of the expert layer and the routings drawn for it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput, Unavailable
from g4lab.tuning import moe_shapes
from g4lab.tuning.moe_shapes import MoEShape, chances, described, of, popularity, routing


def recorded(folder, counts, source="made up"):
    file = folder / "counts.json"
    file.write_text(json.dumps({"source": source, "counts": counts}))
    return f"recorded:{file}"


def test_the_26b_on_one_and_four_ranks():
    one, four = of("26b-a4b")[0], of("26b-a4b", tp=4, sizes=[100])[0]
    assert one == MoEShape(1, 2816, 704, 128, 8)
    assert (four.width, four.tokens, four.tp, four.pairs) == (176, 100, 4, 800)
    assert one.flops == 8 * (2 * 2816 * 1408 + 2 * 704 * 2816)
    assert one.touched == pytest.approx(8)
    assert one.bytes == pytest.approx(2 * (8 * 3 * 2816 * 704 + 2 * 2816))
    assert [each.tokens for each in of()] == list(moe_shapes.SIZES)


def test_touched_under_uniform_is_what_draws_touch():
    """128 draws of 16 tokens: the mean is within 4 standard errors of the exact expectation."""
    ids, _ = routing("uniform", 128 * 16, 128, 8)
    touched = np.array([len(np.unique(part)) for part in ids.reshape(128, 16, 8)])
    expected = MoEShape(16, 2816, 704, 128, 8).touched
    assert expected == pytest.approx(128 * (1 - (1 - 8 / 128) ** 16))
    assert abs(touched.mean() - expected) < 4 * touched.std() / np.sqrt(128)


def test_skew_touches_fewer_experts_and_in_the_end_all():
    few, skewed = (MoEShape(16, 64, 64, 128, 8, routing=name).touched for name in ("uniform", "zipf"))
    assert 8 < skewed < few
    assert MoEShape(8192, 64, 64, 128, 8, routing="zipf").touched == pytest.approx(128, abs=0.01)


@given(
    name=st.sampled_from(["uniform", "zipf", "zipf:2.5"]), tokens=st.integers(0, 20), seed=st.integers(0, 3),
    experts=st.integers(1, 40), data=st.data(),
)  # fmt: skip
def test_experts_of_a_token_are_distinct_and_the_draw_repeats(name, tokens, seed, experts, data):
    top_k = data.draw(st.integers(1, experts))
    ids, weights = routing(name, tokens, experts, top_k, seed)
    assert ids.shape == weights.shape == (tokens, top_k)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < experts
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    again = routing(name, tokens, experts, top_k, seed)
    assert np.array_equal(ids, again[0])
    assert np.array_equal(weights, again[1])


def test_first_choices_follow_the_popularity():
    """20,000 first draws of 16 experts: each count within 5 standard deviations of the binomial."""
    share = popularity("zipf", 16, seed=3)
    ids, _ = routing("zipf", 20_000, 16, 4, seed=3)
    counts = np.bincount(ids[:, 0], minlength=16)
    assert (abs(counts - 20_000 * share) < 5 * np.sqrt(20_000 * share)).all()
    assert sorted(share / share.max(), reverse=True) == pytest.approx([1 / rank for rank in range(1, 17)])


def test_recorded_counts(tmp_path):
    name = recorded(tmp_path, [3, 1, 0, 4])
    assert popularity(name, 4).tolist() == [0.375, 0.125, 0, 0.5]
    assert chances(name, 4, 3).tolist() == [1, 1, 0, 1]
    assert "made up" in described(name, 4)
    with pytest.raises(BadInput, match="1 to 3"):
        routing(name, 1, 4, 4)


@pytest.mark.parametrize("counts", [[1, 2], [0, 0, 0, 0], [1, -1, 1, 1], [1, 2, 3, float("nan")], "abc"])
def test_counts_that_do_not_fit(tmp_path, counts):
    with pytest.raises(BadInput, match=r"counts\.json"):
        popularity(recorded(tmp_path, counts), 4)


def test_refused(tmp_path):
    with pytest.raises(Unavailable, match="no expert counts are committed"):
        popularity("recorded", 4)
    with pytest.raises(BadInput, match="source"):
        popularity(recorded(tmp_path, [1, 1, 1, 1], source=""), 4)
    for name in ("random", "uniform:2", "zipf:x", "zipf:-1", "recorded:nowhere.json"):
        with pytest.raises(BadInput, match="routing"):
            popularity(name, 4)
    with pytest.raises(BadInput, match="tp: got 3"):
        of(tp=3)
    with pytest.raises(BadInput, match="experts"):
        of("31b")
