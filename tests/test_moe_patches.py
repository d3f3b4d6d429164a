"""The expert layer's patches: SGLang's own config lookup with files of ours, transformers' experts, what is declined.

The server's side of fused_moe is in test_attention_patches.py (SGLang's model in process) and test_sglang_server.py.
"""

import copy
import functools

import pytest
import torch

from g4lab import env, patches
from g4lab.errors import BadInput
from g4lab.gemma4.checkpoint import ensure
from g4lab.kernels.fused_moe import fused_moe_reference
from g4lab.kernels.moe_tiles import MoEConfig, MoETile
from g4lab.patches import counting, moe_configs, transformers_experts
from g4lab.quality.tokens import random_prompts
from g4lab.tuning import moe_configs as files

H200, TILE = "NVIDIA H200", MoETile(16, 64, 32, 1, 4, 3)
CONFIGS = {1: MoEConfig(TILE, MoETile(16, 128, 64, 1, 4, 2)), 64: MoEConfig(TILE, TILE)}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(counting, "_counts", type(counting._counts)())
    monkeypatch.setattr(counting, "_notes", {})
    for variable in (moe_configs.VARIABLE, moe_configs.SGLANGS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    moe_configs._pair.cache_clear()


@pytest.fixture
def sglang(monkeypatch):
    """SGLang's module of config lookups on a GPU that calls itself an H200, with the patch around its lookup."""
    runtime = pytest.importorskip("sglang.srt.runtime_context")
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as module

    monkeypatch.setattr(module, "get_device_name", lambda: H200)
    stock = module.get_moe_configs
    stock.cache_clear()
    monkeypatch.setattr(module, "get_moe_configs", functools.partial(moe_configs._look_up, stock))
    with runtime.get_context().override_server_args(model_path="none", device="cpu"):
        yield module, stock
    stock.cache_clear()


def _chosen(module, tokens, width, num_experts=128, dtype=None):
    """What SGLang's kernels are launched with: the options of gate_up and of down."""
    shapes = (num_experts, 2 * width, 2816), (num_experts, 2816, width)
    config, (down, _) = module.try_get_optimal_moe_config(*shapes, 8, dtype, tokens, return_down_config=True)
    return config, down


def test_sglang_takes_our_files_and_keeps_its_own_for_all_else(sglang, tmp_path, monkeypatch):
    module, stock = sglang
    own = stock(128, 704, None, 0, 0, False)
    assert own, "SGLang has files of its own for the 26B-A4B on an H200"
    stock.cache_clear()
    monkeypatch.setenv(moe_configs.VARIABLE, str(tmp_path))
    gate_up, down = files.write(tmp_path, 128, 352, H200, CONFIGS)
    alone, _ = files.write(tmp_path, 64, 352, H200, CONFIGS)
    alone.with_name(alone.name.replace(".json", "_down.json")).unlink()

    assert _chosen(module, 1, 352) == (files.entry(CONFIGS[1].gate_up), files.entry(CONFIGS[1].down))
    assert _chosen(module, 60, 352) == (files.entry(TILE), files.entry(TILE))
    assert moe_configs.SGLANGS_VARIABLE not in moe_configs.os.environ
    assert counting._counts == {"moe_configs": 4}
    assert counting._notes == {"moe_configs": {"files": {gate_up.name: 2, down.name: 2}}}
    nearest = own[files.nearest(own, 60)]
    assert _chosen(module, 60, 704)[0] == nearest
    _chosen(module, 1, 352, dtype="fp8_w8a8")
    assert _chosen(module, 1, 352, num_experts=64)[0] != files.entry(CONFIGS[1].gate_up)  # half a pair is none
    assert counting._counts == {"moe_configs": 4}


def test_configs_are_declined_with_the_reason(tmp_path, monkeypatch):
    declines, triton = patches.REGISTRY["moe_configs"].declines, env.versions()["triton"]
    assert "runs on a GPU" in declines("cpu")
    monkeypatch.setattr(moe_configs.env, "machine", lambda: {"gpus": [{"name": H200}]})
    assert declines("cuda") == f"g4lab has no files for {H200} and Triton {triton}"

    monkeypatch.setenv(moe_configs.VARIABLE, str(tmp_path))
    files.write(tmp_path, 128, 704, "NVIDIA H100 80GB HBM3", CONFIGS)
    files.write(tmp_path, 128, 704, H200, CONFIGS, triton="3.2.0")
    assert declines("cuda") == f"{moe_configs.VARIABLE} ({tmp_path}) has no files for {H200} and Triton {triton}"
    gate_up, down = files.write(tmp_path, 128, 704, H200, CONFIGS)
    assert declines("cuda") is None
    gate_up.write_text(gate_up.read_text().replace('"BLOCK_SIZE_M": 16', '"BLOCK_SIZE_M": 32', 1))
    assert "BLOCK_SIZE_M" in declines("cuda")
    assert down.name in declines("cuda")

    monkeypatch.setenv(moe_configs.SGLANGS_VARIABLE, "/theirs")
    assert declines("cuda") == "SGLANG_MOE_CONFIG_DIR is set: the files of /theirs are in use"


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(ensure("tiny-moe"), dtype=torch.float32).eval()


def _greedy(model, prompts, new_tokens=4):
    found = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def test_as_transformers_experts_implementation_tokens_are_eagers(model):
    prompts = random_prompts((5, 40), model.config.vocab_size, seed=2)
    before = model.config._experts_implementation
    model.set_experts_implementation("eager")
    eager = _greedy(model, prompts)
    transformers_experts.register()
    model.set_experts_implementation("g4lab")
    assert counting._counts["fused_moe"] == 0
    assert _greedy(model, prompts) == eager
    assert counting._counts["fused_moe"] == 2 * 4 * 6  # prompts, forward passes, layers
    model.set_experts_implementation(before)
    assert patches.apply(model, "fused_moe") == [f"model.layers.{i}.experts" for i in range(6)]
    assert _greedy(model, prompts) == eager
    assert counting._counts["fused_moe"] == 2 * 2 * 4 * 6
    patches.remove(model)
    assert _greedy(model, prompts) == eager
    assert counting._counts["fused_moe"] == 2 * 2 * 4 * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_of_a_model_in_low_precision_is_within_eagers_error(model, dtype):
    """Each row of a real layer's output: twice what eager in that dtype is off fp64, and an eps band."""
    experts = copy.deepcopy(model.model.layers[2].experts).to(dtype)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(33, experts.hidden_dim, generator=generator).to(dtype)
    weights, ids = torch.randn(33, experts.num_experts, generator=generator).softmax(-1).topk(2)
    arguments = x, experts.gate_up_proj, experts.down_proj, weights.to(dtype), ids
    with torch.no_grad():
        exact, eager = (fused_moe_reference(*arguments, compute=each).double() for each in (torch.float64, dtype))
        got = transformers_experts.run(experts, x, ids, weights.to(dtype)).double()
    budget = 2 * (eager - exact).abs().amax(-1) + torch.finfo(dtype).eps * exact.abs().amax(-1)
    assert ((got - exact).abs().amax(-1) <= budget).all()


def test_experts_of_another_make_are_refused(model):
    from transformers.activations import ACT2FN

    layer = copy.deepcopy(model.model.layers[0].experts)
    x, ids, weights = torch.ones(2, layer.hidden_dim), torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 2)
    with pytest.raises(BadInput, match="hidden_states: got 'tensors that ask for gradients'"):
        transformers_experts.run(layer, x, ids, weights)
    with torch.no_grad():
        layer.is_transposed = True
        with pytest.raises(BadInput, match=r"experts: got .*'is_transposed': True"):
            transformers_experts.run(layer, x, ids, weights)
        layer.is_transposed, layer.act_fn = False, ACT2FN["silu"]
        with pytest.raises(BadInput, match=r"activation SiLU.*expected Gemma-4's gelu_pytorch_tanh"):
            transformers_experts.run(layer, x, ids, weights)
