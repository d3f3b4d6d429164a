"""SGLang's real server with the patches off and on: one table of token identity for the three tiny models."""

import pytest

from g4lab import env
from g4lab.quality.tokens import identity, random_prompts
from g4lab.runners import sglang_server, transformers_run

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="checks the CPU server; a GPU's tokens are compared in 30_serving"),
]

LENGTHS, NEW_TOKENS = (8, 100), 8  # the models' windows are 64: the longer prompt leaves them
# model -> the attention backend, and what each patch counts in one step
SERVED = {
    "tiny-moe": ("triton", {"qkv_norm_rope_kv": 6, "kv_single_gemm": 1, "residual_norm": 6, "router_norm": 6}),
    "tiny-dense": ("torch_native", {"qkv_norm_rope_kv": 6, "kv_single_gemm": 1, "residual_norm": 6}),
    "tiny-ple": ("torch_native", {"qkv_norm_rope_kv": 10, "kv_single_gemm": 5, "residual_norm": 20}),
}


@pytest.mark.parametrize("model", SERVED)
def test_tokens_are_transformers_with_patches_off_and_on(model, tmp_path):
    backend, per_step = SERVED[model]
    prompts = random_prompts(LENGTHS, 1024, seed=5)
    reference = transformers_run(model, prompts, NEW_TOKENS).tokens
    served, counters = {}, {}
    for patches in ("default", "all"):  # default: SGLang with its errors corrected, and no kernel of ours
        folder = tmp_path / patches
        with sglang_server(model, patches=patches, attention_backend=backend, log_dir=folder) as server:
            served[patches] = [server.generate(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts]
            counters[patches] = server.counters()
    table = identity(prompts, reference, served).assign(model=model, backend=backend)
    print(table.to_string(index=False))
    assert table["equal"].all()
    assert not set(per_step) & set(counters["default"])
    steps = counters["all"]["kv_single_gemm"] // per_step["kv_single_gemm"]
    assert steps >= len(prompts) * NEW_TOKENS
    assert {name: counters["all"][name] for name in per_step} == {name: steps * n for name, n in per_step.items()}
    for each in counters.values():
        assert (each.get("swa_decode_window", 0) > 0) == (backend == "triton")
