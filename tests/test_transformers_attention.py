"""g4lab's extend attention as transformers' attention implementation: layouts against eager, models, refusals."""

import copy
from types import SimpleNamespace

import pytest
import torch

from g4lab.errors import BadInput
from g4lab.gemma4 import spec
from g4lab.gemma4.checkpoint import ensure
from g4lab.patches import counting, transformers_attention

HEADS, KV_HEADS, DIM = 4, 2, 32
LAYER = SimpleNamespace(is_causal=True, num_key_value_groups=HEADS // KV_HEADS, training=False)


def _inputs(batch, new, past, seed=0):
    """As Gemma-4's layers make them: q and fresh k, v transposed views, what a cache has joined contiguous."""
    generator = torch.Generator().manual_seed(seed)

    def heads(n, length):
        return torch.randn(batch, length, n, DIM, generator=generator).transpose(1, 2)

    q, k, v = heads(HEADS, new), heads(KV_HEADS, past + new), heads(KV_HEADS, past + new)
    return (q, k.contiguous(), v.contiguous()) if past else (q, k, v)


def _eager(q, k, v, mask, dtype, softcap):
    from transformers.models.gemma4.modeling_gemma4 import eager_attention_forward

    additive = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if dtype == torch.float64:  # the model's own softmax is in fp32
        k, v = (x.repeat_interleave(LAYER.num_key_value_groups, dim=1) for x in (k, v))
        scores = q @ k.mT * 0.3
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        return ((scores + additive).softmax(-1) @ v).transpose(1, 2)
    return eager_attention_forward(LAYER, q, k, v, additive, scaling=0.3, softcap=softcap)[0]


@pytest.mark.parametrize(
    ("new", "past", "window", "padded", "softcap"),
    [
        (9, 0, None, None, None),
        (40, 0, 7, None, None),
        (1, 33, None, None, None),
        (1, 33, 8, None, None),
        (5, 20, 3, None, None),
        (5, 20, 64, None, 2.0),
        (9, 0, None, (4, 0, 9), None),
        (12, 0, 5, (3, 0, 11), None),
        (1, 20, None, (20, 3, 0), None),
        (4, 20, 8, (22, 17, 0), None),
    ],
)
def test_it_attends_as_eager(new, past, window, padded, softcap):
    batch = 3
    q, k, v = _inputs(batch, new, past)
    pads = torch.zeros(batch, dtype=torch.int64) if padded is None else torch.tensor(padded)
    query, key = past + torch.arange(new)[:, None], torch.arange(past + new)
    mask = (key <= query) & (query - key < (window or past + new)) & (key >= pads[:, None, None])
    mask = mask[:, None]
    given = None if padded is None else pads
    out, weights = transformers_attention.attend(
        LAYER, q, k, v, given, scaling=0.3, sliding_window=window, softcap=softcap
    )
    assert weights is None
    assert out.shape == (batch, new, HEADS, DIM)
    assert out.isfinite().all()  # the padding's own rows, too
    real = query[None, :, 0] >= pads[:, None]  # of the others nobody asks
    exact, eager = (_eager(q, k, v, mask, dtype, softcap)[real] for dtype in (torch.float64, torch.float32))
    budget = 2 * (eager - exact).abs().max() + exact.abs().max() * 2**-23
    assert (out[real] - exact).abs().max() <= budget


def test_a_dense_cache_is_read_where_it_lies():
    _, k, v = _inputs(3, 1, 20)
    pools, stride = transformers_attention._pools(k, v)
    assert [pool.data_ptr() for pool in pools] == [k.data_ptr(), v.data_ptr()]
    for b, position in ((0, 0), (1, 7), (2, 20)):
        assert torch.equal(pools[0][b * stride + position], k[b, :, position])
        assert torch.equal(pools[1][b * stride + position], v[b, :, position])
    odd = v[:, :, :, ::2], torch.randn(3, KV_HEADS, 21, 2, DIM // 2)[:, :, :, 0]
    (pool, other), stride = transformers_attention._pools(*odd)  # two layouts: copied into one
    assert torch.equal(pool[stride + 7], odd[0][1, :, 7])
    assert torch.equal(other[stride + 7], odd[1][1, :, 7])


IDS = torch.randint(3, 900, (2, 70), generator=torch.Generator().manual_seed(1))  # the models' windows are 64


@pytest.fixture(scope="module", params=["tiny-moe", "tiny-ple"])
def models(request):
    """The same model twice, by transformers' sdpa and by ours."""
    from transformers import AutoModelForCausalLM

    transformers_attention.register()
    folder = ensure(request.param)
    made = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=name).eval()
        for name in ("sdpa", "g4lab")
    ]
    return *made, len(spec(request.param).layers)


@torch.no_grad()
def test_a_padded_batch_generates_the_same_tokens(models):
    theirs, ours, layers = models
    padding = torch.ones_like(IDS)
    padding[0, :10] = 0
    options = {"attention_mask": padding, "max_new_tokens": 2, "do_sample": False, "eos_token_id": None}
    calls = counting._counts["extend_attention"]
    found = ours.generate(IDS, **options, pad_token_id=0)
    assert counting._counts["extend_attention"] == calls + 2 * layers
    assert torch.equal(found, theirs.generate(IDS, **options, pad_token_id=0))


@torch.no_grad()
def test_chunks_over_a_cache_are_the_whole_prompt(models):
    theirs, ours, _ = models
    start = ours(IDS[:, :66], use_cache=True)
    logits = torch.cat([start.logits, ours(IDS[:, 66:], past_key_values=start.past_key_values).logits], dim=1)
    exact = copy.deepcopy(theirs).double()
    exact.set_experts_implementation("eager")  # the grouped matrix product takes no fp64
    exact, whole = exact(IDS).logits, theirs(IDS).logits
    budget = 2 * (whole - exact).abs().max() + whole.abs().max() * 2**-23
    assert (logits - exact).abs().max() <= budget


def test_what_it_cannot_do_is_refused(models):
    ours = models[1]
    attend, (q, k, v) = transformers_attention.attend, _inputs(1, 2, 3)
    for changed, message in (
        ({"dropout": 0.1}, "dropout: got 0.1"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"is_causal": False}, "causal attention"),
        ({"attention_mask": torch.ones(1, 1, 2, 5)}, r"attention_mask: got \(1, 1, 2, 5\)"),
    ):
        with pytest.raises(BadInput, match=message):
            attend(LAYER, q, k, v, **{"attention_mask": None} | changed)
    with pytest.raises(BadInput, match=r"key: got .* at least the 2 keys"):
        attend(LAYER, q, k[:, :, :1], v[:, :, :1], None)
    with pytest.raises(BadInput, match="gradients"):
        ours(IDS[:, :4])
    with torch.no_grad():
        right = torch.ones_like(IDS[:, :4])
        right[1, 3] = 0
        with pytest.raises(BadInput, match="padding on the left only"):
            ours(IDS[:, :4], attention_mask=right)
        with pytest.raises(BadInput, match="not a mask made for it"):
            ours(IDS[:, :4], attention_mask=torch.ones(2, 1, 4, 4))
        with pytest.raises(BadInput, match="no static cache"):
            ours.generate(IDS[:, :4], max_new_tokens=2, cache_implementation="static", pad_token_id=0)
