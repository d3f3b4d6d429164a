"""Models for transformers: what a name means, and random weights whose routing is spread."""

import dataclasses

import pytest
import torch

from g4lab import env
from g4lab.errors import BadInput, Unavailable
from g4lab.gemma4 import spec
from g4lab.runners import profile_transformers
from g4lab.runners.models import load_model, random_model


@pytest.fixture(scope="module")
def deep():
    """As deep as a model must be for stock dummy weights to send every token to the same experts."""
    return dataclasses.replace(
        spec("tiny-moe"), name="deep", num_hidden_layers=18, num_experts=128, top_k_experts=8, hidden_size=128
    )


def test_random_weights_are_the_same_each_time_and_spread_the_routing(deep, tmp_path, monkeypatch):
    first, second = (random_model(deep, "cpu", torch.float32) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not first.training
    rows = []
    monkeypatch.setattr("g4lab.runners.captures.provenance", lambda *a, expert_load, **k: rows.extend(expert_load))
    profile_transformers(first, "prefill", 1, 64, 1, out=tmp_path)
    assert len(rows) == 18
    assert all(row["tokens"] == 64 and row["experts"] == 128 for row in rows)
    assert min(row["used"] for row in rows) > 100
    assert max(row["most_tokens_on_one"] for row in rows) < 32


def test_rope_and_scales_are_computed_not_random():
    model = random_model(spec("tiny-moe"), "cpu", torch.float32)
    reference = load_model("tiny-moe", "cpu", "float32")
    ours, theirs = dict(model.named_buffers()), dict(reference.named_buffers())
    assert ours.keys() == theirs.keys()
    fixed = [name for name in ours if "inv_freq" in name or "embed_scale" in name]
    assert fixed
    assert all(torch.equal(ours[name], theirs[name]) for name in fixed)


@pytest.mark.skipif(env.has_gpu(), reason="a GPU may hold it")
def test_a_large_model_needs_memory(monkeypatch):
    monkeypatch.setattr("g4lab.runners.models._free_bytes", lambda device: 40e9)
    with pytest.raises(Unavailable, match=r"26b-a4b: the weights take 50\.\d GB, 40\.0 GB are free on cpu"):
        load_model("26b-a4b", dtype="bfloat16")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("no-such-model",), "model: got 'no-such-model'"),
        (("tiny-moe", "tpu"), "device: got 'tpu'"),
        (("tiny-moe", "cpu", "float31"), "dtype: got 'float31'"),
    ],
)
def test_bad_input(arguments, says):
    with pytest.raises(BadInput, match=says):
        load_model(*arguments)
