"""SGLang's real server with the patches on, and off: the tokens of transformers.

tiny-moe is served with patches off and on, on the Triton backend, by notebook 11, which `make test` reruns.
"""

import pytest

from g4lab import env
from g4lab.quality.tokens import identity, random_prompts
from g4lab.runners import sglang_server, transformers_run

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="checks the CPU server; a GPU's tokens are compared in 30_serving"),
]

LENGTHS, NEW_TOKENS = (8, 100), 8  # the models' windows are 64: the longer prompt leaves them
# model -> what is served, and what each patch counts in one step; "default" is SGLang with its errors corrected
SERVED = {
    "tiny-dense": (["all"], {"qkv_norm_rope_kv": 6, "kv_single_gemm": 1, "residual_norm": 6}),
    "tiny-ple": (["default", "all"], {"qkv_norm_rope_kv": 10, "kv_single_gemm": 5, "residual_norm": 20}),
}


@pytest.mark.parametrize("model", SERVED)
def test_tokens_are_transformers_with_patches_off_and_on(model, tmp_path):
    sides, per_step = SERVED[model]
    prompts = random_prompts(LENGTHS, 1024, seed=5)
    reference = transformers_run(model, prompts, NEW_TOKENS).tokens
    served, counters = {}, {}
    for patches in sides:
        folder = tmp_path / patches
        with sglang_server(model, patches=patches, attention_backend="torch_native", log_dir=folder) as server:
            served[patches] = [server.generate(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts]
            counters[patches] = server.counters()
    table = identity(prompts, reference, served).assign(model=model)
    print(table.to_string(index=False))
    assert table["equal"].all()
    assert not set(per_step) & set(counters.get("default", ()))
    steps = counters["all"]["kv_single_gemm"] // per_step["kv_single_gemm"]
    assert steps >= len(prompts) * NEW_TOKENS
    assert {name: counters["all"][name] for name in per_step} == {name: steps * n for name, n in per_step.items()}
