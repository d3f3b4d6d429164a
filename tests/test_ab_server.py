"""The A/B on SGLang's real servers, whose sides differ in their MTP assistants."""

import math

import pytest
import torch

from g4lab import env
from g4lab.gemma4.assistant import ensure_assistant
from g4lab.gemma4.checkpoint import ensure
from g4lab.quality.tokens import random_prompts
from g4lab.runners import ab

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="checks the CPU servers; with a GPU 30_serving runs it"),
]


def test_a_random_and_a_fitted_assistant_say_the_same_and_accept_differently():
    from transformers import AutoModelForCausalLM

    (prompt,) = random_prompts([16], 1024, seed=3)
    reference = AutoModelForCausalLM.from_pretrained(ensure("tiny-moe"), dtype=torch.float32).eval()
    off = reference.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 16:].tolist()
    said = []

    def observe(server):
        if len(said) < 2:  # the first visit of each side: an interpreted verify step takes a second
            said.append(server.generate(prompt, 6, ignore_eos=True))
        return {"port": server.port}

    found = ab(
        "tiny-moe", "default", "default", rounds=1, num_prompts=1, input_len=8, output_len=6, observe=observe,
        drafts=(ensure_assistant("tiny-moe", accepting=False), ensure_assistant("tiny-moe")),
    )  # fmt: skip
    assert said == [off] * 2  # what MTP off says, whatever the drafts
    rows = found.acceptance().set_index("side")
    assert rows.loc["A", "accepted_per_verify"] < 0.1
    assert rows.loc["B", "accepted_per_verify"] > 0.1
    assert rows.loc["A", "accept_length"] > 1  # with no draft accepted: the prefill's token is counted as well
    assert found.a.endswith("MTP (" + ensure_assistant("tiny-moe", accepting=False).name + ")")
    # A visit's own requests: the warm-ups' and the observer's are none of them. A verification proposes three drafts.
    for visit in found.visits:
        assert visit.acceptance.tokens == 6
        assert visit.acceptance.drafted == 3 * visit.acceptance.verify_steps
        assert visit.acceptance.verify_steps + visit.acceptance.accepted >= 5
        assert visit.retractions == 0
    assert len({visit.observed["port"] for visit in found.visits}) == 2
    requests = found.requests()
    assert len(requests) == 4
    assert (requests["output_len"] == 6).all()
    for visit in found.visits:
        mine = requests[(requests["round"] == visit.round) & (requests["position"] == visit.position)]
        # The client's own mean also waits for the end of the stream after the last token.
        assert mine["e2e_ms"].mean() <= visit.result.mean_e2e_ms
        assert math.isclose(mine["ttft_ms"].mean(), visit.result.mean_ttft_ms, rel_tol=1e-6)
    assert found.verdict.startswith("no verdict: fewer than 3 rounds")
