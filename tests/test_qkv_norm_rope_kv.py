"""Norm, rotary embedding and cache write in one launch against the chain of separate steps: every bit of both."""

import functools

import pytest
import torch

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.gemma4.checkpoint import ensure
from g4lab.kernels import rms
from g4lab.kernels.qkv_norm import QKVLaunch, QKVMode, qkv_rmsnorm
from g4lab.kernels.qkv_norm_rope_kv import (
    FP8,
    qkv_norm_rope_kv,
    qkv_norm_rope_kv_reference,
    rope_reference,
    write_cache_reference,
)
from tests.norm_inputs import DEVICE, DTYPES, assert_same, draw, odd_rows
from tests.test_qkv_norm import assert_all_same, checkpoint_shapes, make

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

IN_ORDER = functools.partial(qkv_norm_rope_kv_reference, mean_square=rms.mean_square_in_warp_order)
EAGER = qkv_norm_rope_kv_reference if DEVICE == "cuda" else IN_ORDER
SLOTS, POSITIONS = 320, 64


def angles(head_dim, turned=1.0, dtype=torch.float32):
    """cos and sin as both engines have them: neox, and 0 frequencies where `turned` of a head ends."""
    pairs = head_dim // 2
    frequencies = 10_000.0 ** -(torch.arange(pairs) * 2 / head_dim)
    frequencies[int(pairs * turned) :] = 0.0
    radians = torch.arange(POSITIONS)[:, None] * frequencies
    return torch.cat([radians.cos(), radians.sin()], dim=1).to(DEVICE, dtype)


def case(tokens, mode, hq, hkv, head_dim, dtype=torch.bfloat16, cache_dtype=None, turned=1.0, index=torch.int64):
    """Arguments (twice: the same tensors anew) and keywords."""
    made = []
    for _ in range(2):
        _, (q, k, v, q_weight, k_weight), keywords = make(tokens, mode, hq, hkv, head_dim, dtype=dtype)
        generator = torch.Generator().manual_seed(3)
        positions = torch.randint(0, POSITIONS, (tokens,), generator=generator).to(DEVICE, index)
        caches, loc = (None, None), None
        if mode != "Q":
            caches = [
                torch.zeros(SLOTS, hkv, head_dim, dtype=cache_dtype or dtype, device=DEVICE),
                torch.zeros(SLOTS, 3, hkv, head_dim, dtype=cache_dtype or dtype, device=DEVICE)[:, 1],  # slots apart
            ]
            loc = torch.randperm(SLOTS, generator=generator)[:tokens].to(DEVICE, index)
        made.append((q, k, v, q_weight, k_weight, positions, angles(head_dim, turned), *caches, loc))
    return *made, keywords


def assert_equal(arguments, again, keywords, reference=EAGER, **options):
    expected = reference(*arguments, **keywords)
    got = qkv_norm_rope_kv(*again, **keywords, **options)
    assert_all_same(got, expected)
    for theirs, ours in zip(arguments[7:9], again[7:9], strict=True):
        if theirs is not None:
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("shape", checkpoint_shapes(), ids=str)
def test_the_checkpoints_shapes_bit_for_bit(shape):
    turned = 0.25 if shape[3] == 512 else 1.0  # the full-attention layers' rope is proportional
    for dtype, rounding in zip([*DTYPES, torch.bfloat16], ["fp32", "eager", "fp32", "eager"], strict=True):
        *both, keywords = case(3 if DEVICE == "cpu" else 33, *shape, dtype=dtype, turned=turned)
        assert_equal(*both, keywords | {"rope_rounding": rounding})


@pytest.mark.parametrize("mode", QKVMode)
def test_it_is_the_chain_of_our_own_launches(mode):
    """Norm by qkv_rmsnorm, then the rotary embedding, then the write: the same tensors and the same caches."""
    arguments, again, keywords = case(9, mode, 4, 2, 128)
    q, k, v, q_weight, k_weight, positions, cos_sin, k_cache, v_cache, loc = arguments
    q, k, v = qkv_rmsnorm(q, k, v, q_weight, k_weight, **keywords)
    q = rope_reference(q, positions, cos_sin, 4)
    if mode != "Q":
        k = rope_reference(k, positions, cos_sin, 2)
        write_cache_reference(k, k_cache, loc)
        write_cache_reference(v, v_cache, loc)
    assert_all_same(qkv_norm_rope_kv(*again, **keywords), (q, k, v))
    if mode != "Q":
        assert torch.equal(again[7], k_cache)
        assert torch.equal(again[8], v_cache)


@pytest.mark.parametrize("mode", ["QKV", "QK"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", FP8)
def test_fp8_caches_round_as_pytorch_rounds(cache_dtype, dtype, mode):
    arguments, again, keywords = case(17, mode, 2, 1, 256, dtype=dtype, cache_dtype=cache_dtype)
    for weights in (arguments, again):
        weights[4].mul_(200)  # so that keys pass e4m3's largest value, 448
    assert_equal(arguments, again, keywords, IN_ORDER)
    largest = again[7].float().abs().max()
    if cache_dtype is torch.float8_e4m3fn:
        assert_same(largest, torch.tensor(1e9, device=DEVICE).to(cache_dtype).float())  # 448; before PyTorch 2.12 NaN
    else:
        assert largest > 448


@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize("mode", QKVMode)
def test_any_launch(mode, tokens):
    for launch in (QKVLaunch(rows=1 if tokens < 4 else 16), QKVLaunch(rows=128, num_warps=4)):
        *both, keywords = case(tokens, mode, 2, 1, 64, index=torch.int32)
        assert_equal(*both, keywords, IN_ORDER, launch=launch)


def test_a_negative_slot_is_not_written():
    arguments, again, keywords = case(6, "QKV", 2, 1, 64)
    for each in (arguments, again):
        each[9][2:4] = -1
        each[7].fill_(7.0)
    assert_equal(arguments, again, keywords, IN_ORDER)
    assert (again[7] != 7).any(dim=(1, 2)).sum() == 4


def test_no_tokens_write_nothing():
    arguments, _, keywords = case(0, "QK", 2, 1, 64)
    q, k, v = qkv_norm_rope_kv(*arguments, **keywords)
    assert q.shape == (0, 128)
    assert k.shape == v.shape == (0, 64)
    assert arguments[7].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_rows(dtype):
    arguments, again, keywords = case(8, "QKV", 1, 1, 256, dtype=dtype)
    for each in (arguments, again):
        for x in each[:3]:
            x.copy_(odd_rows(256, dtype))
    expected = IN_ORDER(*arguments, **keywords)
    got = qkv_norm_rope_kv(*again, **keywords)
    assert_all_same(got, expected)
    assert_same(again[7], arguments[7])
    assert got[0][4].isnan().all()


def test_the_full_layers_of_gemma4_turn_a_quarter():
    x = draw(5, 512, dtype=torch.float32)
    positions = torch.arange(5, device=DEVICE)
    turned = rope_reference(x, positions, angles(512, 0.25), 1)
    rest = torch.arange(512, device=DEVICE) % 256 >= 64
    assert torch.equal(turned[:, rest], x[:, rest])
    assert not torch.equal(turned[1:, ~rest], x[1:, ~rest])


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_the_rotary_reference_is_transformers_own(kind):
    from transformers import AutoConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding, apply_rotary_pos_emb

    config = AutoConfig.from_pretrained(ensure("tiny-moe"))
    config = getattr(config, "text_config", config)
    embedding = Gemma4TextRotaryEmbedding(config)
    head_dim = next(layer.head_dim for layer in spec("tiny-moe").layers if layer.kind == kind)
    x = draw(7, 2 * head_dim, dtype=torch.bfloat16).cpu()
    positions = torch.arange(20, 27)
    cos, sin = embedding(x, positions[None], layer_type=kind)
    expected = apply_rotary_pos_emb(x.view(1, 7, 2, head_dim), cos, sin, unsqueeze_dim=2).view(7, -1)
    cache = torch.zeros(27, head_dim)
    half = head_dim // 2
    full, full_sin = embedding(x.float(), positions[None], layer_type=kind)
    cache[positions] = torch.cat([full[0, :, :half], full_sin[0, :, :half]], dim=1)
    assert torch.equal(rope_reference(x, positions, cache, 2, rounding="eager"), expected)


def change(**new):
    names = ["q", "k", "v", "q_weight", "k_weight", "positions", "cos_sin_cache", "k_cache", "v_cache", "cache_loc"]

    def changed(arguments, keywords):
        arguments = dict(zip(names, arguments, strict=True))
        for name, make_new in new.items():
            if name in arguments:
                arguments[name] = make_new(arguments[name])
            else:
                keywords = keywords | {name: make_new(None)}
        return arguments, keywords

    return changed


BAD = {
    "positions: got": change(positions=lambda x: x[:2]),
    "positions: got '.*float": change(positions=lambda x: x.float()),
    "cache_loc: got": change(cache_loc=lambda x: x[None]),
    "cache_loc: got 'None'": change(cache_loc=lambda x: None),
    "cos_sin_cache: got": change(cos_sin_cache=lambda x: x[:, :32]),
    "cos_sin_cache: got torch.float16": change(cos_sin_cache=lambda x: x.half()),
    "k_cache: got": change(k_cache=lambda x: x[:, :, :32]),
    "k_cache: got 'strides": change(k_cache=lambda x: x.repeat(1, 1, 2)[:, :, ::2]),
    "v_cache: got torch.float16": change(v_cache=lambda x: x.half()),
    "k_cache: got torch.int8": change(k_cache=lambda x: x.to(torch.int8)),
    "rope_rounding: got 'exact'": change(rope_rounding=lambda x: "exact"),
    "positions: got 'device meta'": change(positions=lambda x: x.to("meta")),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    arguments, _, keywords = case(3, "QKV", 2, 1, 64)
    arguments, keywords = BAD[message](arguments, keywords)
    before = arguments["q"].clone()
    with pytest.raises(BadInput, match=message):
        qkv_norm_rope_kv(**arguments, **keywords)
    assert torch.equal(arguments["q"], before)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 300])
def test_bits_on_the_gpu_and_in_a_graph(tokens):
    for shape in checkpoint_shapes():
        for cache_dtype in (None, *FP8):
            arguments, again, keywords = case(tokens, *shape, cache_dtype=cache_dtype)
            warm = case(tokens, *shape, cache_dtype=cache_dtype)[0]
            qkv_norm_rope_kv(*warm, **keywords)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                got = qkv_norm_rope_kv(*again, **keywords)
            graph.replay()
            assert_all_same(got, IN_ORDER(*arguments, **keywords))
            if shape[0] != "Q":
                assert torch.equal(again[7].view(torch.uint8), arguments[7].view(torch.uint8))
                assert torch.equal(again[8].view(torch.uint8), arguments[8].view(torch.uint8))
