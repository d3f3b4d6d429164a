"""Patch `kv_layers`: fewer buffers in the real server, the same tokens, and the pools that the plan says."""

import json
import types

import pytest
import torch

from g4lab import env
from g4lab.gemma4 import spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.checkpoint import ensure, sglang_overrides
from g4lab.kvpool import plan
from g4lab.patches import kv_layers
from g4lab.quality.tokens import random_prompts
from g4lab.runners import sglang_server

TOKENS = 400_000  # large enough that the server's memory figure, rounded to 10 MB, shows the layers


def hybrid(shared, layers=10, draft=False):
    """What resolve_layer_indices gives and gets, for a model whose last `shared` layers share KV."""
    from sglang.srt.model_executor.model_runner_components.layer_setup import ModelLayerInfo

    ids = {"swa_attention_layer_ids": [i for i in range(layers) if i % 5 != 4]}
    ids["full_attention_layer_ids"] = [i for i in range(layers) if i % 5 == 4]
    info = ModelLayerInfo(start_layer=0, end_layer=layers, num_effective_layers=layers, **ids)
    text = types.SimpleNamespace(num_kv_shared_layers=shared, num_hidden_layers=layers)
    hf_config = types.SimpleNamespace(architectures=["Gemma4ForCausalLM"])
    config = types.SimpleNamespace(hf_text_config=text, hf_config=hf_config)
    return info, {"model": None, "model_config": config, "is_draft_worker": draft}


def test_layers_that_share_lose_their_buffers_and_nothing_else_changes():
    info, arguments = hybrid(shared=5)
    kept = kv_layers._writers(info, **arguments)
    assert (kept.swa_attention_layer_ids, kept.full_attention_layer_ids) == ([0, 1, 2, 3], [4])
    assert (kept.start_layer, kept.end_layer, kept.num_effective_layers) == (0, 10, 10)
    for shared, draft in ((0, False), (None, False), (5, True)):
        info, arguments = hybrid(shared, draft=draft)
        assert kv_layers._writers(info, **arguments) is None


def test_sglang_charges_a_frozen_kv_drafts_layers_and_the_patch_does_not(tmp_path):
    """What the real server resolves for an assistant of two layers, and the real configurator made of it."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_executor.model_runner_components.layer_setup import resolve_layer_indices
    from sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state import (
        resolve_spec_aux_hidden_state_config,
    )
    from sglang.srt.model_executor.pool_configurator import HybridSWAPoolConfigurator
    from sglang.srt.runtime_context import get_context
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    target = ensure("tiny-moe", "float32")
    draft = write_assistant(spec("tiny-moe"), target, tmp_path / "draft", accepting=False)
    config = ModelConfig(str(target), model_override_args=json.dumps(sglang_overrides(target)))
    algorithm = SpeculativeAlgorithm.FROZEN_KV_MTP
    model = types.SimpleNamespace(config=config.hf_config)
    settings = {"speculative_draft_model_path": str(draft), "speculative_algorithm": "FROZEN_KV_MTP"}
    with get_context().override_server_args(
        model_path=str(target), swa_full_tokens_ratio=0.15, **settings
    ) as published:
        resolved = resolve_spec_aux_hidden_state_config(
            server_args=published, model_config=config, spec_algorithm=algorithm, is_draft_worker=False
        )
        assert (resolved.eagle_draft_num_layers, resolved.eagle_draft_swa_num_layers) == (2, None)
        kvc = types.SimpleNamespace(
            kv_cache_dtype_str="auto",
            kv_cache_dtype=torch.float32,
            model_config=config,
            layer_info=resolve_layer_indices(model=model, model_config=config, is_draft_worker=False),
            sliding_window_size=63,
            page_size=1,
            spec_algorithm=algorithm,
            is_draft_worker=False,
            spec_aux_config=resolved,
        )
        theirs, ours = (object.__new__(HybridSWAPoolConfigurator) for _ in range(2))
        HybridSWAPoolConfigurator.__init__(theirs, kvc)
        kv_layers._without_drafts(HybridSWAPoolConfigurator.__init__, ours, kvc)
    for made, draft_layers in ((theirs, 2), (ours, 0)):
        pools = plan("tiny-moe", 1 << 24, ratio=0.15, dtype_bytes=4, draft_layers=draft_layers)
        assert made.calculate_pool_sizes(1 << 24, 1).max_total_num_tokens == pools.full_tokens


@pytest.mark.server
@pytest.mark.skipif(env.has_gpu(), reason="checks the CPU server")
def test_server_gives_the_same_tokens_from_half_the_memory():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ensure("tiny-ple"), dtype=torch.float32).eval()
    prompts = random_prompts((8, 40, 150), model.config.vocab_size, seed=3)
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    truth = [model.generate(torch.tensor([prompt]), **greedy)[0, len(prompt) :].tolist() for prompt in prompts]
    with sglang_server("tiny-ple", "default,kv_layers", ["--max-total-tokens", str(TOKENS)]) as server:
        assert [server.generate(prompt, 12, ignore_eos=True) for prompt in prompts] == truth
        assert server.counters()["kv_layers"] == 1
        gigabytes = server.info()["internal_states"][0]["memory_usage"]["kvcache"]
    pools = {
        only: plan("tiny-ple", max_total_tokens=TOKENS, dtype_bytes=4, writers_only=only) for only in (True, False)
    }
    expected = {only: (made.full_bytes + made.swa_bytes) / 2**30 for only, made in pools.items()}
    assert gigabytes == pytest.approx(expected[True], abs=0.011)  # SGLang rounds to two places
    assert expected[True] == expected[False] / 2  # what stock SGLang takes: tests/test_kvpool_plan.py
