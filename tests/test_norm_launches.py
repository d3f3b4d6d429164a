"""Launch counts: by hand, of transformers' own modules, and SGLang's names where its code has them."""

import importlib.util
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

from g4lab.bench import norm_launches
from g4lab.bench.norm_launches import EAGER, OURS, PROVIDERS, SGLANG
from g4lab.gemma4 import spec
from g4lab.kernels.router_norm import router_norm


@pytest.fixture(scope="module")
def frame():
    return norm_launches.launches_frame()


def test_views_and_allocations_are_no_launches():
    x = torch.ones(4, 8)
    assert norm_launches.operators(lambda: x.view(2, 16)[0].unsqueeze(0).expand(3, 16)) == 0
    assert norm_launches.operators(lambda: torch.empty_like(x)) == 0
    assert norm_launches.operators(lambda: x.pow(2).mean(-1) + 1e-6) == 3
    assert norm_launches.operators(lambda: x.to(torch.bfloat16).float()) == 2
    assert norm_launches.operators(lambda: x.to(torch.float32)) == 0  # already is


def test_a_kernel_is_one_launch_however_many_programs_it_has():
    x, scale = torch.ones(3000, 128, dtype=torch.bfloat16), torch.ones(128, dtype=torch.bfloat16)
    assert norm_launches.kernels(lambda: router_norm(x, scale)) == 1
    assert norm_launches.kernels(lambda: [router_norm(x[:2], scale) for _ in range(3)]) == 3
    assert norm_launches.kernels(lambda: None) == 0


def test_eager_counts_are_those_of_transformers(frame):
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm, Gemma4TextRouter

    x = torch.ones(4, 128, dtype=torch.bfloat16)
    norm = Gemma4RMSNorm(128).bfloat16()
    router = Gemma4TextRouter(spec("tiny-moe").hf_config()).bfloat16()
    of_norm = norm_launches.operators(lambda: norm(x))
    of_router = norm_launches.operators(lambda: router.norm(x) * router.scale * router.scalar_root_size)
    with torch.inference_mode():
        assert norm_launches.operators(lambda: norm(x)) == of_norm
    if not torch.cuda.is_available():
        assert frame.loc["router's norm", EAGER] == of_router
        assert frame.loc["end, dense", EAGER] == of_norm + 2  # residual, scalar
        assert frame.loc["end, MoE", EAGER] == 3 * of_norm + 3
        assert frame.loc["end, per-layer embedding", EAGER] == 2 * of_norm + 3


def test_ours_is_one_launch_where_sglang_has_three(frame):
    assert (
        frame.loc[["attention, QKV", "attention, QK", "attention, Q"], [SGLANG, OURS]].to_numpy().tolist()
        == [[3, 1]] * 3
    )
    assert (frame[OURS] <= frame[SGLANG]).all()
    assert (frame[SGLANG] < frame[EAGER]).all()


def test_sglangs_launches_are_in_its_code(frame):
    found = importlib.util.find_spec("sglang")
    if found is None:
        pytest.skip("SGLang is not installed")
    srt = Path(next(iter(found.submodule_search_locations))) / "srt"
    files = (
        "models/gemma4_causal.py",
        "layers/layernorm.py",
        "layers/rotary_embedding/base.py",
        "mem_cache/memory_pool.py",
    )
    code = "\n".join((srt / name).read_text() for name in files)
    for names in frame["SGLang's launches"]:
        for name in names.split(" + "):
            if name not in ("add", "mul"):  # operators, written as such
                assert re.search(rf"\b{name}\(", code), name


def test_a_forward_pass_has_the_sum_of_its_layers(frame):
    counts = norm_launches.per_forward(frame, ("26b-a4b", "31b", "e2b"))
    of = frame[OURS]
    assert counts.loc["26b-a4b", OURS] == 30 * (of["attention, QKV"] + of["router's norm"] + of["end, MoE"])
    assert counts.loc["31b", SGLANG] == 60 * (3 + 1)
    e2b = 15 * frame.loc["attention, QKV", EAGER] + 20 * frame.loc["attention, Q", EAGER]
    assert counts.loc["e2b", EAGER] == e2b + 35 * frame.loc["end, per-layer embedding", EAGER]


def test_figure_shows_the_counts_and_their_kind(frame):
    fig = norm_launches.draw(frame, "this machine")
    shown = [bar.get_width() for container in fig.axes[0].containers for bar in container]
    assert shown == [count for provider in PROVIDERS for count in frame[provider]]
    assert fig.get_supxlabel() == "live · this machine"
    assert not math.isnan(sum(shown))
    plt.close(fig)
