"""The models as data against the models transformers builds, and against the published figures."""

import subprocess
import sys

import pytest

from g4lab.errors import BadInput
from g4lab.gemma4 import NAMES, QKVMode, costs, spec
from g4lab.gemma4.specs import CHECKPOINTS, FULL, SLIDING
from g4lab.gemma4.tensors import tensors


@pytest.fixture(scope="module", params=NAMES)
def built(request):
    """(spec, the model transformers builds from it, without memory)."""
    import torch
    from transformers import Gemma4ForCausalLM

    with torch.device("meta"):
        return spec(request.param), Gemma4ForCausalLM(spec(request.param).hf_config())


def test_every_tensor_has_the_name_and_shape_transformers_gives_it(built):
    s, model = built
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert {t.name: t.shape for t in tensors(s)} == theirs
    learned = {name for name, _ in model.named_parameters()}
    assert {t.name for t in tensors(s) if t.learned} == learned
    assert costs.total_parameters(s) == sum(p.numel() for p in model.parameters())


def test_layers_agree_with_transformers_attention(built):
    s, model = built
    writers = {m.layer_type: i for i, m in enumerate(_attentions(model)) if m.store_full_length_kv}
    for layer, theirs in zip(s.layers, _attentions(model), strict=True):
        assert layer.kind == theirs.layer_type
        assert layer.window == theirs.sliding_window
        assert layer.head_dim == theirs.head_dim
        assert layer.num_q_heads // layer.num_kv_heads == theirs.num_key_value_groups
        assert layer.owns_kv != theirs.is_kv_shared_layer
        assert layer.kv_source == (writers[layer.kind] if theirs.is_kv_shared_layer else layer.index)
        if theirs.is_kv_shared_layer:
            assert layer.qkv_mode == QKVMode.Q
        else:
            assert layer.qkv_mode == (QKVMode.QKV if theirs.v_proj is not None else QKVMode.QK)


def test_config_says_the_published_constants(built):
    s, _ = built
    config = s.hf_config()
    assert (config.final_logit_softcapping, config.rms_norm_eps) == (30.0, 1e-6)
    assert config.rope_parameters[SLIDING] == {"rope_type": "default", "rope_theta": 1e4}
    assert config.rope_parameters[FULL]["partial_rotary_factor"] == 0.25
    assert config.tie_word_embeddings
    assert config.hidden_activation == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("name", "layers", "full", "modes"),
    [
        ("26b-a4b", 30, 5, {"QKV": 25, "QK": 5}),
        ("31b", 60, 10, {"QKV": 50, "QK": 10}),
        ("e4b", 42, 7, {"QKV": 24, "Q": 18}),
        ("e2b", 35, 7, {"QKV": 15, "Q": 20}),
    ],
)
def test_layer_pattern_of_the_checkpoints(name, layers, full, modes):
    s = spec(name)
    assert len(s.layers) == layers
    assert len(s.of_kind(FULL)) == full
    assert s.layers[-1].kind == FULL
    found = [layer.qkv_mode for layer in s.layers]
    assert {mode: found.count(mode) for mode in found} == modes


def test_e2b_sharing_layers_read_the_last_writer_of_their_kind():
    layers = spec("e2b").layers
    assert {layer.kv_source for layer in layers[15:] if layer.kind == SLIDING} == {13}
    assert {layer.kv_source for layer in layers[15:] if layer.kind == FULL} == {14}
    assert {layer.intermediate_size for layer in layers[:15]} == {6144}
    assert {layer.intermediate_size for layer in layers[15:]} == {12_288}


def test_kv_bytes_per_token_by_hand():
    s = spec("26b-a4b")
    assert s.kv_bytes_per_token(SLIDING) == 25 * 2 * 8 * 256 * 2
    assert s.kv_bytes_per_token(FULL) == 5 * 2 * 2 * 512 * 2
    assert s.kv_bytes_per_token(SLIDING, dtype_bytes=1) == 25 * 2 * 8 * 256
    e2b = spec("e2b")  # 15 of 35 layers write KV: 12 sliding and 3 full, with one head each
    assert e2b.kv_bytes_per_token(SLIDING) == 12 * 2 * 256 * 2
    assert e2b.kv_bytes_per_token(FULL) == 3 * 2 * 512 * 2


def test_kv_heads_are_split_over_ranks_and_replicated_beyond():
    s = spec("26b-a4b")  # sliding layers have 8 KV heads, full ones 2
    assert [s.kv_bytes_per_token(SLIDING, tp=tp) for tp in (2, 8, 16)] == [
        s.kv_bytes_per_token(SLIDING) / n for n in (2, 8, 8)
    ]
    assert s.kv_bytes_per_token(FULL, tp=8) == s.kv_bytes_per_token(FULL) / 2
    for tp in (0, -1, 3, 32):
        with pytest.raises(BadInput, match=f"tp: got {tp}, expected"):
            s.kv_bytes_per_token(FULL, tp=tp)


def test_unknown_names_are_one_clear_line():
    with pytest.raises(BadInput, match=r"model: got '26b', expected one of 26b-a4b, 31b, e4b, e2b, tiny-moe"):
        spec("26b")
    with pytest.raises(BadInput, match=r"kind: got 'full', expected .*full_attention"):
        spec("31b").kv_bytes_per_token("full")


def test_checkpoints_are_the_four_with_a_repository():
    assert CHECKPOINTS == ("26b-a4b", "31b", "e4b", "e2b")


def test_importing_gemma4_and_counting_stays_light():
    code = (
        "import sys, g4lab.gemma4 as g, g4lab.gemma4.costs as c, g4lab.gemma4.checkpoint\n"
        "c.step_cost(g.spec('26b-a4b'), context=100)\n"
        "print([m for m in ('torch', 'triton', 'transformers', 'sglang', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def _attentions(model):
    return [layer.self_attn for layer in model.model.layers]
