"""The unneeded rows of packed QKV projections: by hand, against the weights that the models have, and over ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.gemma4 import costs, qkv_costs, spec
from g4lab.gemma4.specs import CHECKPOINTS, NAMES, QKVMode


@pytest.mark.parametrize(
    ("name", "layers", "rows"),
    [
        ("26b-a4b", 5, 5 * 2 * 512),  # K=V: one of two projections of 2 heads of 512
        ("31b", 10, 10 * 4 * 512),
        ("e4b", 18, 2 * (15 * 2 * 256 + 3 * 2 * 512)),  # sharing: both projections, 15 sliding and 3 full layers
        ("e2b", 20, 2 * (16 * 256 + 4 * 512)),
    ],
)
def test_rows_by_hand(name, layers, rows):
    s = spec(name)
    assert sum(qkv_costs.unneeded_heads(layer) > 0 for layer in s.layers) == layers
    found = qkv_costs.unneeded(s, tokens=3)
    assert found.rows == rows
    assert found.weight_bytes == 2 * rows * s.hidden_size
    assert found.flops == 3 * 2 * rows * s.hidden_size
    read_by_a_norm = 2 if s.attention_k_eq_v else 1
    assert found.activation_bytes == 3 * 2 * rows * read_by_a_norm


@pytest.mark.parametrize("name", NAMES)
def test_packed_minus_unneeded_is_what_the_model_has(name):
    s = spec(name)
    packed = sum((layer.num_q_heads + 2 * layer.num_kv_heads) * layer.head_dim for layer in s.layers)
    out = sum(layer.num_q_heads * layer.head_dim for layer in s.layers)  # the output projection, transposed
    needed = packed - qkv_costs.unneeded(s).rows
    assert (needed + out) * s.hidden_size == costs.parameters(s)["attention"]


@given(st.sampled_from(CHECKPOINTS), st.sampled_from([1, 2, 4]), st.integers(0, 64))
def test_ranks_add_up_to_the_model_and_what_is_replicated(name, tp, tokens):
    s = spec(name)
    ranks, whole = (qkv_costs.unneeded(s, tokens=tokens, tp=n) for n in (tp, 1))
    assert tp * ranks.rows >= whole.rows
    if all(layer.num_kv_heads % tp == 0 for layer in s.layers):
        assert tp * ranks.rows == whole.rows
        assert tp * ranks.flops == whole.flops


def test_a_layer_with_its_own_k_and_v_needs_all():
    assert {qkv_costs.unneeded_heads(x) for x in spec("31b").layers if x.qkv_mode == QKVMode.QKV} == {0}


def test_frame_holds_the_checkpoints_and_adds_up():
    frame = qkv_costs.unneeded_frame(batch=4, context=100)
    assert list(frame.index) == list(CHECKPOINTS)
    assert dict(frame["mode"]) == {"26b-a4b": "QK", "31b": "QK", "e4b": "Q", "e2b": "Q"}
    assert frame.loc["31b", "weights_mb"] == pytest.approx(20_480 * 5376 * 2 / 1e6)
    # A weight of bf16 is two bytes to read and two FLOPs to use: the same number.
    assert frame["weights_mb"].tolist() == pytest.approx(frame["mflop_per_token"].tolist())
    assert ((frame.filter(like="pct") > 0) & (frame.filter(like="pct") < 100)).all(axis=None)


@pytest.mark.parametrize(("choices", "message"), [({"tokens": -1}, "tokens"), ({"tp": 3}, "tp")])
def test_bad_input(choices, message):
    with pytest.raises(BadInput, match=message):
        qkv_costs.unneeded(spec("31b"), **choices)
