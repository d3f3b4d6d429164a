"""The sentinel in SGLang's real server: quiet where all is right, and first at the slot that is wrong."""

import json
import re
from pathlib import Path

import pytest

from g4lab import cli, env
from g4lab.errors import Unavailable
from g4lab.gemma4 import spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.checkpoint import ensure
from g4lab.kvpool import dump
from g4lab.quality.tokens import random_prompts
from g4lab.runners import sglang_server

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="checks the CPU server"),
]

# 1,000 tokens in the full pool, 150 in the sliding one; tiny-moe's window is 64
SMALL = ["--swa-full-tokens-ratio", "0.15", "--max-total-tokens", "1000", "--chunked-prefill-size", "32"]
PROMPT_LEN, BAD_POSITION, BAD_SLOT = 40, 21, 9120


def served(patches, folder, *args):
    dumps = {"G4LAB_KV_DUMP_DIR": str(folder)}
    return sglang_server("tiny-moe", patches, [*SMALL, *args], env=dumps, log_dir=folder)


def inspected(error, tmp_path, capsys):
    """The lines of `g4lab kv inspect` on the dump that the error names."""
    (path,) = re.findall(r"explained by: g4lab kv inspect (\S+\.npz)", str(error.value))
    assert Path(path).parent == tmp_path
    assert cli.run(["kv", "inspect", path]) == 0
    return capsys.readouterr().out.splitlines(), dump.load(path)


def test_it_finds_that_torch_native_reads_full_slots_from_the_sliding_pool(tmp_path, capsys):
    """SGLang 0.5.21 without the correction torch_native_swa: otherwise an IndexError, or silently wrong tokens."""
    prompts = random_prompts([150, 150], 1024, seed=5)

    def serve():
        with served("default,-torch_native_swa,kv_sentinel", tmp_path) as server:
            for prompt in prompts:
                server.generate(prompt, 4, ignore_eos=True)

    with pytest.raises(Unavailable, match=r"KVIndexError: layer 0 \(sliding pool, TorchNativeAttnBackend, ") as error:
        serve()
    lines, read = inspected(error, tmp_path, capsys)
    assert "a FULL-pool slot that was never translated; expected slot " in lines[2]
    assert read.rows == 151
    assert read.window == 63


BREAK_A_SLOT = """
import sys

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor


class BreakASlot(CustomLogitProcessor):
    def __call__(self, logits, custom_param_list=None):
        what, frame = custom_param_list[0], sys._getframe()
        while not hasattr(frame.f_locals.get("self"), "token_to_kv_pool_allocator"):
            frame = frame.f_back
        runner = frame.f_locals["self"]
        table = runner.req_to_token_pool.req_to_token
        mapping = runner.token_to_kv_pool_allocator.full_to_swa_index_mapping
        mapping[table[what["__req__"].kv.req_pool_idx, what["position"]]] = what["slot"]
        return logits
"""


def breaking(position, slot):
    """What a request asks for so that the server breaks its mapping itself: SGLang runs such code for requests."""
    import dill

    space = {"__name__": "__main__"}  # dill sends the class itself, not the name of a module that the server lacks
    exec(BREAK_A_SLOT, space)
    code = json.dumps({"callable": dill.dumps(space["BreakASlot"], recurse=True).hex()})
    return {"custom_logit_processor": code}, {"custom_params": {"position": position, "slot": slot}}


def test_it_finds_an_injected_slot(tmp_path, capsys):
    """The third request of a server that was right until then loses a sliding slot between two chunks of its prompt."""
    *right, last = random_prompts([PROMPT_LEN] * 3, 1024, seed=6)
    more, params = breaking(BAD_POSITION, BAD_SLOT)
    body = {"input_ids": last, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True} | params} | more

    def serve():
        with served("default,kv_sentinel", tmp_path, "--enable-custom-logit-processor") as server:
            for prompt in right:
                assert len(server.generate(prompt, 4, ignore_eos=True)) == 4
            assert server.counters()["kv_sentinel"] > len(right) * 4 * 3  # table, full and sliding layers, allocations
            server.request("POST", "/generate", json=body, timeout=60)

    told = r"KVIndexError: layer 0 \(sliding pool, TorchNativeAttnBackend, EXTEND\)"
    with pytest.raises(Unavailable, match=told) as error:
        serve()
    lines, read = inspected(error, tmp_path, capsys)
    assert f"position {BAD_POSITION}: slot {BAD_SLOT:,} of a pool that has 150, as the mapping says" in lines[2]
    assert lines[3] == f"1 of {PROMPT_LEN} slots are bad"
    assert read.requests[0] > 0


def test_it_is_quiet_over_mtp_and_tritons_lists(tmp_path):
    """Prefill in chunks, verification and frozen-KV drafts with a sliding pool far smaller than the full one."""
    draft = write_assistant(spec("tiny-moe"), ensure("tiny-moe"), tmp_path / "assistant", accepting=False)
    (prompt,) = random_prompts([70], 1024, seed=7)
    with sglang_server("tiny-moe", "default,kv_sentinel", SMALL, draft=draft, log_dir=tmp_path / "log") as server:
        assert len(server.generate(prompt, 4, ignore_eos=True)) == 4
        assert server.counters()["kv_sentinel"] > 10
        assert server.states()["frozen_kv_swa"] == "on"
