"""The patches for transformers on real models: the same logits, each patch alone and all, and no trace after."""

import copy
import re

import pytest
import torch

from g4lab import patches
from g4lab.errors import BadInput, G4LabError
from g4lab.gemma4 import spec
from g4lab.gemma4.modules import routers
from g4lab.patches import choices, counting
from g4lab.patches.transformers_model import NAMES


def _model(name="tiny-moe", dtype=torch.float32):
    from transformers import Gemma4ForCausalLM

    torch.manual_seed(0)
    model = Gemma4ForCausalLM(spec(name).hf_config()).to(dtype).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("router.scale", "per_expert_scale")):
                parameter.uniform_(0.3, 3.0)
    return model


@pytest.fixture(scope="module")
def model():
    return _model()


IDS = torch.randint(3, 900, (2, 24), generator=torch.Generator().manual_seed(1))


def _logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_transformers_router_patch_agrees_and_leaves_no_trace(model):
    before = _logits(model)
    routers = [module for module in model.modules() if type(module).__name__ == "Gemma4TextRouter"]
    forwards, state = [r.forward.__func__ for r in routers], {k: v.clone() for k, v in model.state_dict().items()}
    inner = [dict(vars(r)) for r in routers]
    calls = counting._counts["router"]

    exact = copy.deepcopy(model).double()
    exact.set_experts_implementation("eager")  # the grouped matrix product takes no fp64
    exact = _logits(exact)
    names = patches.apply(model)
    assert len(names) == len(routers) == 6
    assert all(re.fullmatch(r"model\.layers\.\d+\.router", name) for name in names)
    patched = _logits(model)
    assert counting._counts["router"] == calls + len(routers)
    # Twice what fp32 itself loses in this model, and a band of one ulp of the largest logit.
    budget = 2 * (before - exact).abs().max() + before.abs().max() * 2**-23
    assert (patched - exact).abs().max() <= budget

    assert patches.remove(model) == names
    assert [r.forward.__func__ for r in routers] == forwards
    assert [dict(vars(r)) for r in routers] == inner
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(_logits(model), before)
    assert patches.remove(model) == []


def test_transformers_router_keeps_the_router_contract(model):
    module = model.model.layers[0].router
    x = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        probabilities, weights, ids = module(x)
        patches.apply(model)
        try:
            ours = module(x)
            assert [t.shape for t in module(x[:0])] == [(0, 8), (0, 2), (0, 2)]
        finally:
            patches.remove(model)
    assert torch.equal(ours[0], probabilities)
    assert torch.equal(ours[2], ids)
    assert ours[2].dtype == ids.dtype
    assert ours[1].dtype == weights.dtype
    torch.testing.assert_close(ours[1], weights, rtol=8 * 2**-23, atol=0)  # exp, sum, two divisions: a few ulps


def test_transformers_router_in_bf16_is_the_served_chain():
    """In bf16 transformers rounds 8 probabilities, route 2: equal ids unless rounded probabilities tie."""
    from g4lab.kernels.router import route_reference

    model = _model(dtype=torch.bfloat16)
    module = model.model.layers[0].router
    x = torch.randn(64, model.config.hidden_size, generator=torch.Generator().manual_seed(3)).bfloat16()
    with torch.no_grad():
        logits = module.proj(module.norm(x) * module.scale * module.scalar_root_size)
        weights, ids = route_reference(logits, module.per_expert_scale, 2)
        patches.apply(model)
        _, ours, our_ids = module(x)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(our_ids.sort().values, ids.long().sort().values)
    by_id = torch.zeros(64, 8).scatter(1, ids.long(), weights)
    assert torch.equal(torch.zeros(64, 8).scatter(1, our_ids, ours.float()), by_id)


def test_an_instance_forward_put_there_by_others_comes_back(model):
    module = model.model.layers[0].router
    wrapped = module.forward
    module.forward = lambda x: wrapped(x)
    theirs = module.forward
    try:
        patches.apply(model)
        patches.remove(model)
        assert module.forward is theirs
    finally:
        del module.forward


def test_transformers_patch_refuses_what_it_cannot_do(model, monkeypatch):
    with pytest.raises(BadInput, match=r"patches: got 'router_scale', expected some of .* router, router_norm"):
        patches.apply(model, "router,router_scale")
    with pytest.raises(BadInput, match="no router modules"):
        patches.apply(_model("tiny-dense"))
    patches.apply(model)
    try:
        with pytest.raises(BadInput, match="unpatched"):
            patches.apply(model)
    finally:
        patches.remove(model)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(G4LabError, match="TRITON_INTERPRET=1"):
        patches.apply(model)


MODELS = ("tiny-moe", "tiny-dense", "tiny-ple")
# What each patch counts in one forward pass of tiny-moe, tiny-dense and tiny-ple (6, 6 and 10 layers).
CALLS = {
    "router": (6, 0, 0),
    "router_norm": (6, 0, 0),
    "qkv_norm": (6, 6, 10),
    "residual_norm": (6, 6, 20),
    "extend_attention": (6, 6, 10),
    "fused_moe": (6, 0, 0),
}


@pytest.fixture(scope="module")
def models():
    """Each model in fp32 with its logits, and how far those are from the same weights' logits in fp64."""
    made = {}
    for name in MODELS:
        model = _model(name)
        for _, buffer in model.named_buffers():
            if buffer.shape == (1,):
                buffer.fill_(0.75)  # the layer scalar; 1 would hide a forgotten one
        exact = copy.deepcopy(model).double()
        exact.set_experts_implementation("eager")  # the grouped matrix product takes no fp64
        exact = _logits(exact)
        made[name] = model, _logits(model), exact
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", [*NAMES, "all"])
def test_each_patch_alone_and_all_keep_the_logits(models, name, text):
    model, before, exact = models[name]
    at = MODELS.index(name)
    if text in ("router", "router_norm", "fused_moe") and name != "tiny-moe":
        with pytest.raises(BadInput, match=f"{text} has work in .this one has no (router|such) modules"):
            patches.apply(model, text)
        return
    counting._counts.clear()
    patches.apply(model, text)
    try:
        after = _logits(model)
    finally:
        patches.remove(model)
    expected = {each: CALLS[each][at] for each in (NAMES if text == "all" else (text,)) if CALLS[each][at]}
    assert dict(counting._counts) == expected
    # Twice what fp32 itself loses in this model, and a band of one ulp of the largest logit.
    budget = 2 * (before - exact).abs().max() + before.abs().max() * 2**-23
    assert (after - exact).abs().max() <= budget
    assert torch.equal(_logits(model), before)


def test_a_forgotten_layer_scalar_would_be_seen(models):
    model, before, exact = models["tiny-ple"]
    changed = copy.deepcopy(model)
    changed.model.layers[3].layer_scalar.fill_(1.0)
    budget = 2 * (before - exact).abs().max() + before.abs().max() * 2**-23
    assert (_logits(changed) - exact).abs().max() > 100 * budget


@pytest.mark.parametrize("name", ["tiny-moe", "tiny-ple"])
def test_patched_decoding_through_a_cache_is_the_whole_prompts(models, name):
    model, before, _ = models[name]
    patches.apply(model, "qkv_norm,residual_norm")
    try:
        with torch.no_grad():
            start = model(IDS[:, :22], use_cache=True)
            last = model(IDS[:, 22:], past_key_values=start.past_key_values)
    finally:
        patches.remove(model)
    logits = torch.cat([start.logits, last.logits], dim=1)
    torch.testing.assert_close(logits, before, rtol=0, atol=1e-4)  # other shapes, other sums: ulps of logits near 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_norms_in_low_precision_are_the_models_own_bits_up_to_the_sum(dtype, monkeypatch):
    """Where the order of the sum is fixed, nothing is left to differ: every rounding is where transformers has it."""
    from transformers.models.gemma4 import modeling_gemma4

    from g4lab.kernels import rms

    def norm(module, x):
        return x * torch.rsqrt(rms.mean_square_in_warp_order(x) + module.eps)

    monkeypatch.setattr(modeling_gemma4.Gemma4RMSNorm, "_norm", norm)
    model = _model(dtype=dtype)
    before = _logits(model)
    patches.apply(model, "router_norm,qkv_norm,residual_norm")
    assert torch.equal(_logits(model), before)


def test_the_roundings_that_patches_offer_are_the_kernels():
    from g4lab.kernels import residual_norm, router_norm
    from g4lab.patches import residual_norm as residual_patch
    from g4lab.patches import router_norm as router_patch

    assert set(router_patch.rounding.names) == set(router_norm.ROUNDINGS)
    assert set(residual_patch.rounding.names) == set(residual_norm.ROUNDINGS)


def test_another_rounding_gives_other_bits_in_bf16(monkeypatch):
    model = _model(dtype=torch.bfloat16)
    x = torch.randn(64, model.config.hidden_size, generator=torch.Generator().manual_seed(3)).bfloat16()
    module = next(iter(routers(model).values()))
    found = {}
    try:
        for name in ("transformers", "sglang"):
            monkeypatch.setenv("G4LAB_ROUTER_NORM_ROUNDING", name)
            choices.forget()
            patches.apply(model, "router_norm")
            with torch.no_grad():
                found[name] = module(x)[0]
            patches.remove(model)
    finally:
        choices.forget()
    assert not torch.equal(found["transformers"], found["sglang"])
