"""Figures of the rounding lesson: what they show is what the frames and the chains say."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from g4lab.kernels.router_norm import ROUNDINGS, router_norm_reference
from g4lab.quality import draw_rounding


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def frame():
    rows = [
        {"change": change, "layer": layer, "direct_pct": 0.5, "seen_pct": 0.5 + layer, "kl": 0.01}
        for change in ("sglang", "fp32")
        for layer in range(3)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_drawn_chains_are_the_kernels(rounding):
    """The picture's operators and bars, computed, are the reference of that name in every bit."""
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.randn(64, 96, generator=generator).bfloat16(), torch.randn(96, generator=generator).bfloat16()
    root = 96**-0.5
    value = {
        "norm(x)": lambda v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6),
        "× scale": lambda v: v * scale.float(),
        "× H^-½": lambda v: v * root,
        "× folded": lambda v: v * (scale * torch.tensor(root, dtype=torch.bfloat16)).float(),
    }
    got = x.float()
    for operator, rounded in draw_rounding.CHAINS[rounding]:
        got = value[operator](got)
        got = got.bfloat16().float() if rounded else got
    assert got.equal(router_norm_reference(x, scale, rounding=rounding).float())


def test_chains_have_a_bar_for_each_rounding():
    fig = draw_rounding.draw_chains()
    bars = [line for line in fig.axes[0].lines if line.get_linewidth() == 5]
    assert len(bars) == sum(rounded for steps in draw_rounding.CHAINS.values() for _, rounded in steps)
    assert fig.get_supxlabel().startswith("published")


def test_layers_are_lines_on_one_scale(frame):
    fig = draw_rounding.draw_layers(frame, "here")
    made, seen = fig.axes
    assert [line.get_label() for line in made.lines] == ["sglang", "fp32"]
    assert list(seen.lines[0].get_ydata()) == [0.5, 1.5, 2.5]
    assert made.get_ylim() == seen.get_ylim()
    assert made.get_ylim()[0] == 0
    assert made.get_ylim()[1] > 2.5
    assert fig.get_supxlabel() == "live · here"


def test_noise_is_a_mean_over_seeds_and_no_noise_is_left_out(frame):
    sizes = [(0.0, 0, 0.0), (0.25, 0, 1.0), (0.25, 1, 3.0), (4.0, 0, 10.0), (4.0, 1, 20.0)]
    noise = pd.DataFrame(
        [{"mean_ulps": u, "seed": s, "direct_pct": y, "seen_pct": 2 * y, "kl": y / 100} for u, s, y in sizes]
    )
    marks = dict(iter(frame.groupby("change")))
    fig = draw_rounding.draw_noise(noise, marks, "here")
    curve, *lines = fig.axes[0].lines
    assert list(curve.get_xdata()) == [0.25, 4.0]
    assert np.allclose(curve.get_ydata(), [2.0, 15.0])
    assert {line.get_label(): line.get_ydata()[0] for line in lines} == {"fp32": 0.5, "sglang": 0.5}
