"""The shapes of extend attention: counts against a count by hand, the published ones against the published table."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.published import published
from g4lab.tuning.extend_shapes import PUBLISHED, SHAPES, ExtendShape, select, shape


@given(
    batch=st.integers(1, 3), extend=st.integers(0, 12), prefix=st.integers(0, 12),
    window=st.none() | st.integers(0, 20),
)  # fmt: skip
def test_pairs_and_bytes_are_those_of_the_mask(batch, extend, prefix, window):
    case = ExtendShape("any", batch, extend, prefix, window, num_q_heads=6, num_kv_heads=2, head_dim=64)
    reach = 10**9 if window is None else window
    mask = [[0 <= prefix + i - key <= reach for key in range(prefix + extend)] for i in range(extend)]
    assert case.pairs == batch * sum(map(sum, mask))
    assert case.flops == 2 * 2 * case.pairs * 6 * 64
    if extend:
        touched = sum(map(any, zip(*mask, strict=True)))
        assert case.bytes == batch * 2 * 64 * (2 * extend * 6 + 2 * touched * 2)


def test_the_eight_published_shapes_are_the_tables():
    table = published("extend_attention_microbench")
    table = table[table.source.str.startswith("pull request text, microbench table")]
    conditions = dict(zip(table.case, table.condition, strict=True))
    assert list(conditions) == [each.name for each in PUBLISHED]
    for each in PUBLISHED:
        said = dict(re.findall(r"(\w+)=(\w+)", conditions[each.name]))
        ours = {"batch": each.batch, "extend": each.extend, "prefix": each.prefix, "head_dim": each.head_dim}
        ours["window"] = each.window or "none"
        assert said == {name: str(ours[name]) for name in said}
        assert (each.num_q_heads, each.num_kv_heads, each.group) == (8, 4, 2)


def test_the_other_shapes_have_the_models_heads():
    layers = {(s.num_q_heads, s.num_kv_heads, s.head_dim, s.window) for s in spec("26b-a4b").layers}
    for each in set(SHAPES) - set(PUBLISHED):
        tp = int(each.name[-1])
        window = each.window and each.window + 1  # the model's window counts the query itself
        assert (each.num_q_heads * tp, each.num_kv_heads * tp, each.head_dim, window) in layers


def test_selection():
    assert len({each.name for each in SHAPES}) == len(SHAPES)
    assert select() == list(SHAPES)
    assert select(["verify-burst", "prefill long"]) == [shape("verify burst"), shape("prefill long")]
    with pytest.raises(BadInput, match="shape: got 'nope', expected one of prefill long"):
        select(["nope"])
