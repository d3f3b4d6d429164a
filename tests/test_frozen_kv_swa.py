"""Frozen-KV drafts and the sliding window: SGLang's context managers around real backends of a real draft runner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from g4lab import env
from g4lab.gemma4 import spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.checkpoint import ensure
from g4lab.patches import frozen_kv_swa
from g4lab.runners.server_command import STANDIN

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="puts names in place of the GPU's kernels"),
]
RIGHT = {"word": "right", "pool restored": True}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What frozen_views.py saw."""
    folder = tmp_path_factory.mktemp("frozen")
    draft = write_assistant(spec("tiny-moe"), ensure("tiny-moe"), folder / "assistant", accepting=False)
    variables = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(STANDIN),
        "OMP_NUM_THREADS": "1",
        "G4LAB_KV_DUMP_DIR": str(folder),
    }
    command = [sys.executable, str(Path(__file__).with_name("frozen_views.py")), "tiny-moe", str(draft), str(folder)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_flashattention_reads_full_slots_from_the_sliding_pool(seen):
    """501 full-pool slots were handed out before; the sliding pool has 300."""
    stock = seen["flashattention"]["False"]
    assert stock["flags"] == [False] * 4
    assert "layer 4 (sliding pool, FlashAttentionBackend, DECODE): row 0 (request 1) position 0: " in stock["word"]
    assert (
        "slot 501 of a pool that has 300, a FULL-pool slot that was never translated; expected slot 201"
        in stock["word"]
    )
    assert "; 38 more; " in stock["word"]


def test_with_the_patch_its_state_follows_the_pool_and_comes_back(seen):
    assert seen["flashattention"]["True"] == RIGHT | {"flags": [False, True, False, False]}


def test_its_graphs_get_a_page_table_for_sliding_layers(seen):
    assert seen["graphs"] == {"False": [False, False], "True": [True, False]}


def test_the_backends_that_need_no_patch(seen):
    """Triton's lists are right either way; the others resolve the target's pool when they are made."""
    assert seen["triton"] == dict.fromkeys(("False", "True"), RIGHT | {"flags": [False] * 4})
    assert seen["FlashInferAttnBackend"] is seen["TRTLLMHAAttnBackend"] is True


def test_torch_native_follows_too(seen):
    assert seen["torch_native"] is True


def test_only_backends_that_note_their_pool_are_touched():
    class Backend:
        token_to_kv_pool = None

    with frozen_kv_swa.following(Backend()):
        pass
    assert not frozen_kv_swa.mends(Backend())
