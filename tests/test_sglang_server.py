"""SGLang's real server on this machine: its tokens, its patches, and its end, whatever ends it.

Each test that needs another server starts one (about half a minute on two cores), and gets all it can out of it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from g4lab import env
from g4lab.errors import BadInput, Unavailable
from g4lab.gemma4 import spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.checkpoint import ensure
from g4lab.patches import alive_in, parse
from g4lab.quality.tokens import random_prompts
from g4lab.runners import profile_server, sglang_server
from g4lab.trace import load

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="checks the CPU server; a GPU's tokens are compared in 30_serving"),
]

LENGTHS, NEW_TOKENS = (8, 40, 150), 12  # tiny-moe's window is 64: only the longest prompt leaves it
IN_CHUNKS = ["--chunked-prefill-size", "96"]  # of which the longest prompt takes two
CLEAR_MARGIN = 1e-3  # between the first and the second logit; fp32 noise is below 1e-5 of logits near 10


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(ensure("tiny-moe"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def truth(reference):
    """Prompts, and the tokens that transformers in fp32 adds to each greedily."""
    generator = torch.Generator().manual_seed(15)
    prompts = [torch.randint(3, reference.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    return prompts, [greedy(reference, prompt) for prompt in prompts]


def greedy(model, prompt, missing=0):
    """NEW_TOKENS greedy tokens; a decoded token's sliding window is short of `missing` keys, the prompt's is whole.

    Every choice must be clear, so that no rounding decides it.
    """
    ids, window = torch.tensor([prompt]), model.config.sliding_window
    for _ in range(NEW_TOKENS):
        query, key = torch.arange(ids.shape[1])[:, None], torch.arange(ids.shape[1])[None]
        causal = key <= query
        near = causal & (query - key < torch.where(query < len(prompt), window, window - missing))
        masks = {"full_attention": causal, "sliding_attention": near}
        masks = {
            kind: torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None] for kind, seen in masks.items()
        }
        with torch.no_grad():
            best = model(ids, attention_mask=masks, use_cache=False).logits[0, -1].topk(2)
        assert best.values[0] - best.values[1] > CLEAR_MARGIN, "choose another seed: this prompt has a near-tie"
        ids = torch.cat([ids, best.indices[None, :1]], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_the_masks_above_are_transformers_own(reference, truth):
    prompts, tokens = truth
    out = reference.generate(
        torch.tensor([prompts[2]]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert out[0, LENGTHS[2] :].tolist() == tokens[2]


def served(server, prompts):
    return [server.generate(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts]


def family(server):
    """The pids of the server: supervisor, main process and workers."""
    supervisor = psutil.Process(server.pid).parent()
    return [supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]


def survivors(pids, within_s=10.0):
    """Which of `pids` still run after at most `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        left = [pid for pid in pids if _alive(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_torch_native_serves_transformers_tokens(truth, tmp_path):
    prompts, tokens = truth
    with sglang_server("tiny-moe", patches="all,expert_load", log_dir=tmp_path) as server:
        assert served(server, prompts) == tokens
        counters, states = server.counters(), server.states()
        patched = ("router", "router_norm", "qkv_norm_rope_kv", "residual_norm", "fused_moe")
        in_each_layer = {counters[name] for name in patched}
        assert in_each_layer == {6 * counters["kv_single_gemm"]}  # one of six layers has K=V
        assert counters["kv_single_gemm"] >= len(prompts) * NEW_TOKENS
        assert counters.get("router_scale", 0) == 0  # router_norm reads the scale itself
        assert counters.get("qkv_norm", 0) == 0  # qkv_norm_rope_kv has done its work
        assert counters.get("swa_decode_window", 0) == 0  # this backend has no such window
        assert counters.get("moe_activation", 0) == 0  # the CPU's is right
        assert {name for name, state in states.items() if state == "on"} == {*parse("all,expert_load")}
        load = server.expert_load()
        assert [row["layer"] for row in load] == list(range(6))
        assert all(row["tokens"] == 150 and 1 <= row["used"] <= row["experts"] == 8 for row in load)
        assert server.info()["attention_backend"] == "torch_native"
        assert server.log_path == tmp_path / "server.log"
        with pytest.raises(BadInput, match="Address already in use"), sglang_server("tiny-moe", port=server.port):
            pass
        with pytest.raises(BadInput, match=r"input_ids: got 1000000, expected token ids from 0 to 1023"):
            server.generate([5, 10**6], 4)  # SGLang itself would die of it
        with pytest.raises(Unavailable, match=r"did not answer /generate: .*longer than the model's context length"):
            server.generate([5] * 10**4, 4)
        assert server.generate(prompts[0], 4) == tokens[0][:4]  # and it lives on
        pids = family(server)
    assert survivors(pids) == []
    with pytest.raises(Unavailable, match="ended"):
        server.check()


def test_torch_native_reads_a_small_window_pool_at_its_own_slots(truth, tmp_path):
    """1,000 tokens in the full pool, 150 in the sliding one, and enough prompts to hand out every slot of both again.

    What SGLang's own backend does there is in test_kv_sentinel.py.
    """
    prompts, tokens = truth
    small = ["--swa-full-tokens-ratio", "0.15", "--max-total-tokens", "1000", "--chunked-prefill-size", "32"]
    with sglang_server("tiny-moe", args=small, log_dir=tmp_path) as server:
        memory = server.info()["internal_states"][0]["memory_usage"]
        assert (memory["token_capacity"], memory["token_capacity_swa"]) == (1000, 150)
        assert served(server, prompts) == tokens
        for prompt in random_prompts([150] * 8, server.vocab_size, seed=3):
            server.generate(prompt, 1)
        assert served(server, prompts) == tokens
        assert server.counters()["torch_native_swa"] % 5 == 0  # five of six layers slide


def test_without_router_scale_tokens_differ_and_a_killed_server_says_so(truth, tmp_path):
    prompts, tokens = truth
    with sglang_server("tiny-moe", patches="all,-router_norm,-router_scale,-fused_moe", log_dir=tmp_path) as server:
        wrong = served(server, prompts)
        assert all(a != b for a, b in zip(wrong, tokens, strict=True))
        pids = family(server)
        killed = []

        def kill():
            killed.append(time.monotonic())
            os.kill(server.pid, signal.SIGKILL)

        threading.Timer(1.0, kill).start()
        with pytest.raises(Unavailable, match=r"ended by signal 9; its log .* ends:"):
            server.generate(prompts[0], 2000, ignore_eos=True)
        assert time.monotonic() - killed[0] < 5
        assert survivors(pids) == []


def owner(arguments, prompts):
    """A process that owns a server, and what it reported once the server had answered."""
    command = [sys.executable, str(Path(__file__).with_name("server_owner.py"))]
    process = subprocess.Popen(
        [*command, json.dumps([arguments, prompts, NEW_TOKENS])], stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line, f"the owner ended with {process.wait()}"
    return process, json.loads(line)


def test_without_the_window_fix_long_tokens_differ_and_a_killed_owner_leaves_no_orphan(reference, truth, tmp_path):
    prompts, tokens = truth
    patches = "all,-swa_decode_window,-router,-extend_attention,-fused_moe"
    arguments = {"model": "tiny-moe", "patches": patches, "attention_backend": "triton", "args": IN_CHUNKS}
    process, seen = owner(arguments | {"log_dir": str(tmp_path)}, [*prompts[1:], prompts[2]])
    assert seen["tokens"][0] == tokens[1]  # inside the window nothing is lost
    assert seen["tokens"][1] != tokens[2]
    assert seen["tokens"][1] == greedy(reference, prompts[2], missing=1)  # one key short in every decode step
    assert seen["tokens"][2] == seen["tokens"][1]
    assert [cached > 64 for cached in seen["cached_tokens"]] == [False, False, True]  # more than a window
    assert seen["counters"]["extend_tiles"] % 6 == 0
    assert seen["counters"]["extend_tiles"] >= 6 * 4  # a short prompt, two chunks, what the cache left of the third
    process.kill()
    process.wait()
    assert len(seen["pids"]) >= 4
    assert survivors(seen["pids"]) == []


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    return write_assistant(spec("tiny-moe"), ensure("tiny-moe"), tmp_path_factory.mktemp("draft") / "assistant")


def test_mtp_serves_the_same_tokens_and_some_drafts_are_right(truth, draft, tmp_path):
    prompts, tokens = truth
    with sglang_server("tiny-moe", patches="all", draft=draft, args=IN_CHUNKS, log_dir=tmp_path) as server:
        answer = server.answer(prompts[1], NEW_TOKENS, ignore_eos=True)
        assert answer["output_ids"] == tokens[1]
        assert answer["meta_info"]["spec_num_correct_drafts"] > 0
        long = [server.answer(prompts[2], 4, ignore_eos=True) for _ in range(2)]
        assert [answer["output_ids"] for answer in long] == [tokens[2][:4]] * 2
        assert [answer["meta_info"]["cached_tokens"] > 64 for answer in long] == [False, True]  # more than a window
        counters = server.counters()
        assert counters["extend_attention"] > 0
        assert "extend_tiles" not in counters  # nothing was declined, no verify's mask either
        assert counters["mtp_pp_proxy"] > 0
        # The target's layers and the assistant's, which read the target's K and V: they project and norm q alone.
        assert counters["qkv_norm_rope_kv"] == counters["residual_norm"] > counters["router_norm"]
        assert counters["router_norm"] == counters["router"] == counters["fused_moe"]
        draft_layers = counters["residual_norm"] - counters["router"]
        assert counters["kv_single_gemm"] == draft_layers + counters["router"] / 6
        trace = load(profile_server(server, "prefill", 1, 16, 1, out=tmp_path))
        assert alive_in(trace, "extend_attention").alive
        assert alive_in(trace, "fused_moe").alive


def test_mtp_fails_without_its_fix(draft, tmp_path):
    with (
        pytest.raises(Unavailable, match="the SGLang server ended"),
        sglang_server("tiny-moe", patches="all,-mtp_pp_proxy", draft=draft, log_dir=tmp_path),
    ):
        pass
    assert "unexpected keyword argument 'pp_proxy_tensors'" in (tmp_path / "server.log").read_text()


@pytest.fixture
def deep(tmp_path):
    """A config for dummy weights, deep enough that SGLang's own lose the tokens' difference on the way."""
    folder = tmp_path / "deep"
    shutil.copytree(ensure("tiny-moe"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "num_experts": 128,
        "top_k_experts": 8,
        "num_hidden_layers": 18,
        "layer_types": config["layer_types"] * 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return {"model": str(folder), "args": ["--load-format", "dummy"]}


def test_spread_dummy_uses_more_experts_and_an_interrupt_ends_the_server(deep, tmp_path):
    prompt = list(range(100, 164))  # 64 distinct tokens
    with sglang_server(**deep, patches="none,expert_load", log_dir=tmp_path / "stock") as server:
        server.generate(prompt, 1)
        stock = [row["used"] for row in server.expert_load()]
    variables = {"G4LAB_ROUTER_ROUNDING": "fp32"}
    chosen = "all,-fused_moe,spread_dummy,expert_load"  # 18 layers of 128 experts are minutes in the interpreter
    arguments = deep | {"patches": chosen, "env": variables, "log_dir": str(tmp_path / "own")}
    process, seen = owner(arguments, [prompt])
    assert seen["counters"]["spread_dummy"] == 1
    assert seen["counters"]["router"] > 0  # in fp32 rounding
    spread = [row["used"] for row in seen["expert_load"]]
    assert len(stock) == len(spread) == 18
    assert stock[-1] == 8, "every token went to the same 8 experts"
    assert min(spread) > 100
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert survivors(seen["pids"]) == []


def test_wrong_sglang_arguments_end_with_the_logs_last_lines(tmp_path):
    with (
        pytest.raises(
            Unavailable, match=r"(?s)ended with exit code 2.*unrecognized arguments: --no-such-flag"
        ) as error,
        sglang_server("tiny-moe", args=["--no-such-flag"], log_dir=tmp_path),
    ):
        pass
    assert str(tmp_path / "server.log") in str(error.value)
