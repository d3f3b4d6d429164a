"""The transformers runner: its tokens are generate()'s, its times are one a step, and a given model stays as it was."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from g4lab.errors import BadInput
from g4lab.gemma4.checkpoint import ensure
from g4lab.runners import transformers_run

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], list(range(20, 120)), [3]]  # the second is longer than the window of 64


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(ensure("tiny-moe"), dtype=torch.float32).eval()


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_tokens_are_those_of_generate(model):
    result = transformers_run(model, PROMPTS, 12)
    assert result.tokens == [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in result.tokens}) == 3
    assert result.prompt_tokens == [8, 100, 1]
    assert [len(steps) for steps in result.decode_ms] == [11] * 3
    assert all(ms > 0 for steps in [result.prefill_ms, *result.decode_ms] for ms in steps)
    assert result.decode_tokens_per_s == pytest.approx(33e3 / sum(map(sum, result.decode_ms)))
    assert (result.dtype, result.patches, result.patched_calls) == ("float32", "none", 0)
    assert result.clock == ("cuda events" if "cuda" in result.device else "perf_counter")


def test_the_patched_router_ran_and_the_model_is_restored(model):
    before = dict(vars(model.model.layers[0].router))
    result = transformers_run(model, PROMPTS[:1], 4, patches="router")
    layers = model.config.get_text_config().num_hidden_layers
    assert result.patched_calls == layers * (2 + 4)  # two warm-up steps
    assert result.tokens == [greedy(model, PROMPTS[0], 4)]
    after = vars(model.model.layers[0].router)
    assert set(after) == set(before)
    assert not after["_forward_hooks"]


def test_one_token_has_no_decode_step():
    result = transformers_run("tiny-moe", [[1, 2]], 1, device="cpu")
    assert result.decode_ms == [[]]
    assert result.decode_tokens_per_s != result.decode_tokens_per_s


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompts": []}, "prompts: got"),
        ({"prompts": [[1], []]}, r"prompts\[1\]: got"),
        ({"prompts": [[10**6]]}, r"prompts\[0\]: got .* token ids from 0 to"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"patches": "swa_decode_window"}, "patches: got 'swa_decode_window'"),
        ({"model": "/nowhere"}, "model: got '/nowhere'"),
        ({"model": "tiny-moe", "dtype": "float31", "device": "cpu"}, "dtype: got 'float31'"),
    ],
)
def test_bad_input(model, change, reason):
    with pytest.raises(BadInput, match=reason):
        transformers_run(**{"model": model, "prompts": [[1]], "max_new_tokens": 1} | change)
