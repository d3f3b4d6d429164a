"""The plugin inside SGLang's own hook registry, and the patched functions of SGLang called directly on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from g4lab.patches import REGISTRY
from g4lab.runners.server_command import STANDIN

SEQ_LENS, WINDOW = [1, 7, 8, 9, 30], 8


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    env = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(STANDIN),
        "G4LAB_COUNTERS_DIR": str(tmp_path_factory.mktemp("counters")),
    }
    script = Path(__file__).with_name("server_plugin.py")
    done = subprocess.run([sys.executable, str(script)], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr}


def test_each_patch_says_on_off_or_why_not(seen):
    states = seen["states"]
    assert states.pop("spread_dummy") == "off"
    assert "has no sglang.srt.models.gemma4_causal.Gemma4Router.renamed" in states.pop("missing")
    assert states.pop("foreign") == "skipped: another plugin replaces sglang.srt.layers.moe.topk.fused_topk_native"
    assert states.pop("stubborn") == "failed: no hook took on sglang.srt.layers.moe.topk.biased_grouped_topk"
    assert states.pop("moe_configs") == "declined: SGLang's expert kernel, which the files are for, runs on a GPU"
    assert states.pop("apply_hooks restored") is True
    assert states == dict.fromkeys(set(REGISTRY) - {"spread_dummy", "moe_configs"}, "on")


def test_one_log_line_for_each_patch(seen):
    lines = [line for line in seen["log"].splitlines() if line.startswith("[g4lab ")]
    names = [line.split("] patch ")[1].split(":")[0] for line in lines]
    assert sorted(names) == sorted([*REGISTRY, "missing", "foreign", "stubborn"])


def expected(keys_of):
    """[first position, last position, number] of the keys that a decode step at the end of each sequence attends."""
    return [[n - min(n, keys_of), n - 1, min(n, keys_of)] for n in SEQ_LENS]


def test_eager_decode_attends_the_whole_window(seen):
    assert seen["decode"] == {"fixed": expected(WINDOW), "stock": expected(WINDOW - 1)}


def test_extend_is_left_alone(seen):
    assert seen["extend"]["fixed"] == seen["extend"]["stock"] == expected(WINDOW - 1)


def test_graph_buffers_hold_and_get_the_whole_window(seen):
    fixed, stock = seen["graph"]["fixed"], seen["graph"]["stock"]
    assert (fixed["windows"], stock["windows"]) == (expected(WINDOW), expected(WINDOW - 1))
    assert (fixed["buffer"], stock["buffer"]) == (5 * WINDOW, 5 * (WINDOW - 1))
    assert fixed["full"] == [[100 - WINDOW, 99, WINDOW]] * 5
    assert fixed["size after"] == WINDOW - 1


def test_a_draft_backend_keeps_sglangs_window(seen):
    assert seen["graph"]["draft"] == seen["graph"]["stock"]


def test_a_model_without_windows_passes(seen):
    assert seen["no window"] is None


def test_standin_agrees_with_sglangs_triton_tree_kernels(seen):
    assert [agree for agree, _ in seen["trees"]] == [True] * 8
    assert sum(right for _, right in seen["trees"]) >= 5, "too few accepted drafts to say anything"
