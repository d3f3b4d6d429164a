"""How many launches the norms of a layer, and what follows them, take: eager, in SGLang 0.5.21, and in g4lab's kernels.

Counted where they can be: on a GPU the kernels of each call, elsewhere the operators of the eager chain that write
memory (a launch each on a GPU) and the launches of interpreted kernels. SGLang's are read off the code of its CUDA
path (srt/models/gemma4_causal.py) by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from g4lab import env
from g4lab.bench import norms
from g4lab.bench.norms_cases import HeadCase, RowCase
from g4lab.figures import INK, PALETTE, house_style, stamp
from g4lab.gemma4.specs import CHECKPOINTS, Layer, Spec, spec
from g4lab.kernels.residual_norm import (
    dual_residual_norm,
    dual_residual_norm_reference,
    residual_norm,
    residual_norm_reference,
)
from g4lab.kernels.router_norm import router_norm, router_norm_reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUTER, END, END_MOE, END_PLE = "router's norm", "end, dense", "end, MoE", "end, per-layer embedding"
EAGER, SGLANG, OURS = "eager PyTorch", "SGLang 0.5.21", "g4lab"
PROVIDERS = (EAGER, SGLANG, OURS)
_NO_LAUNCH = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::detach"}


@dataclass(frozen=True)
class Chain:
    """One step of a layer: calls without arguments, and the kernels that SGLang's CUDA path launches for it."""

    name: str
    eager: Callable[[], object]
    ours: Callable[[], object]
    sglang: tuple[str, ...]


def operators(call: Callable[[], object]) -> int:
    """Operators of `call` that write memory: all that PyTorch dispatches but views and allocations."""
    counter = _Counter()
    # Inference mode would show composite operators whole, `to` among them.
    with torch.inference_mode(False), torch.no_grad(), counter:
        call()
    return counter.count


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or func._schema.name in _NO_LAUNCH)
        return func(*args, **(kwargs or {}))


def kernels(call: Callable[[], object]) -> int:
    """Kernels that `call` launches: the GPU's own, or without one the Triton launches of interpreted kernels."""
    gpu = env.has_gpu()
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    events = profile.events()
    if gpu:
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    return sum(event.name.endswith(" (interpreted)") for event in events)


def chains(device: str | None = None) -> list[Chain]:
    """Every step that g4lab has a kernel for, on small bf16 inputs."""
    device = device or ("cuda" if env.has_gpu() else "cpu")
    return [*(_attention(mode, device) for mode in ("QKV", "QK", "Q")), *_rows(device)]


def _attention(mode: str, device: str) -> Chain:
    case = HeadCase("qkv_norm_rope_kv", 4, mode, num_q_heads=4, num_kv_heads=2, head_dim=64)
    x = case.inputs(device)
    # The rotary kernel wants a K, so a layer without one makes zeros.
    last = "zeros_like" if mode == "Q" else "store_cache"
    return Chain(
        f"attention, {mode}",
        lambda: norms.eager_qkv_norm_rope_kv(case, x),
        lambda: norms.qkv_norm_rope(case, x),
        ("gemma_qkv_rmsnorm", "apply_rope_with_cos_sin_cache_inplace", last),
    )


def _rows(device: str) -> list[Chain]:
    def chain(name, operation, reference, kernel, sglang):
        case = RowCase(operation, 4, hidden_size=256)
        x = case.inputs(device)
        return Chain(name, *(partial(norms.row_norm(each), case, x) for each in (reference, kernel)), sglang)

    x = RowCase("residual_norm", 4, hidden_size=256).inputs(device)

    def end_with_embedding(norm):
        """The layer's own end without the scalar, then its embedding's branch with it."""
        return norm(x.other, x.weights[1], norm(x.x, x.weights[0], x.residual), x.scalar)

    dual = "gemma_dual_rmsnorm_residual_scalar"
    return [
        chain(ROUTER, "router_norm", router_norm_reference, router_norm, ("rmsnorm",)),
        chain(END, "residual_norm", residual_norm_reference, residual_norm, ("gemma_rmsnorm_residual_scalar",)),
        chain(END_MOE, "dual_residual_norm", dual_residual_norm_reference, dual_residual_norm, (dual,)),
        Chain(
            END_PLE,
            partial(end_with_embedding, residual_norm_reference),
            partial(end_with_embedding, residual_norm),
            ("rmsnorm", "add", "rmsnorm", "add", "mul"),
        ),
    ]


def launches_frame() -> pd.DataFrame:
    """One row for each step of a layer, and a column of launches for each of PROVIDERS; how they are counted, too."""
    eager = kernels if env.has_gpu() else operators
    rows = [(c.name, eager(c.eager), len(c.sglang), kernels(c.ours), " + ".join(c.sglang)) for c in chains()]
    return pd.DataFrame(rows, columns=["step", *PROVIDERS, "SGLang's launches"]).set_index("step")


def steps_of(spec: Spec, layer: Layer) -> list[str]:
    """The names of the steps that a layer has."""
    end = END_MOE if spec.is_moe else END_PLE if spec.has_ple else END
    return [f"attention, {layer.qkv_mode.value}", *([ROUTER] if spec.is_moe else []), end]


def per_forward(frame: pd.DataFrame, names: Sequence[str] = CHECKPOINTS) -> pd.DataFrame:
    """Launches of these steps in one forward pass of each model, from launches_frame's counts."""
    steps = {name: [step for layer in spec(name).layers for step in steps_of(spec(name), layer)] for name in names}
    return pd.DataFrame({name: frame.loc[of, list(PROVIDERS)].sum() for name, of in steps.items()}).T


def draw(frame: pd.DataFrame, source: str) -> Figure:
    """launches_frame's counts by step, and what they add up to in a forward pass of the four checkpoints."""
    import matplotlib.pyplot as plt

    house_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1.25, 1))
    for ax, counts in ((left, frame), (right, per_forward(frame))):
        for i, (provider, colour) in enumerate(zip(PROVIDERS, (PALETTE[7], PALETTE[1], PALETTE[0]), strict=True)):
            places = [y + 0.27 * (i - 1) for y in range(len(counts))]
            bars = ax.barh(places, counts[provider], height=0.25, color=colour, label=provider)
            ax.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8, color=INK)
        ax.set_yticks(range(len(counts)), counts.index)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set(xscale="log", xlim=(0.7, 4 * counts[EAGER].max()), xlabel="launches")
        ax.xaxis.set_major_formatter("{x:,.0f}")
    left.set_title("One step of a layer")
    right.set_title("All of them in one forward pass")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8.5)
    stamp(fig, "live", source)
    return fig
