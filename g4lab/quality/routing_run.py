"""Forward passes of a transformers Gemma-4 whose routers' input is changed on its way, and what comes of it.

The router's input is its norm's output; a change of its last bits moves the router's logits, some of them past each
other, and then a token goes to another expert. What follows is no matter of last bits any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from g4lab.errors import bad
from g4lab.gemma4.modules import routers
from g4lab.quality.ulp_noise import Change, Noise, Rounding


@dataclass(frozen=True)
class Run:
    """One forward pass. By router's name, in the layers' order: experts [T, K] as chosen, hidden states [T, H]."""

    logits: torch.Tensor  # fp32 [B, S, V]
    experts: dict[str, torch.Tensor]
    hidden: dict[str, torch.Tensor]


def forward(
    model: torch.nn.Module, ids: torch.Tensor, change: Change | None = None, hold: Mapping | None = None
) -> Run:
    """One pass over `ids` int64 [B, S], every router's input replaced by `change`'s.

    hold: another run's `experts`; then the choice is that run's, and only the weights follow the changed logits.

    Raises:
        BadInput: a model without routers.
    """
    experts: dict[str, torch.Tensor] = {}
    hidden: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack, torch.inference_mode():
        if change:
            stack.enter_context(changed(model, change))
        for name, router in _routers(model).items():

            def before(_, args, name=name):
                hidden[name] = args[0]

            def after(router, _, chosen, name=name):
                experts[name] = chosen[2] if hold is None else hold[name]
                return None if hold is None else _weights_of(router, chosen[0], hold[name])

            stack.enter_context(_removing(router.register_forward_pre_hook(before)))
            stack.enter_context(_removing(router.register_forward_hook(after)))
        logits = model(ids, use_cache=False).logits.float()
    return Run(logits, experts, hidden)


def choose_again(model: torch.nn.Module, base: Run, change: Change) -> dict[str, torch.Tensor]:
    """The experts [T, K] that each router chooses for the hidden states of `base` if only its own input is changed."""
    with changed(model, change), torch.inference_mode():
        return {name: router(base.hidden[name])[2] for name, router in _routers(model).items()}


@contextlib.contextmanager
def changed(model: torch.nn.Module, change: Change) -> Iterator[None]:
    """Within the block every router's projection gets what `change` makes of its input."""
    with contextlib.ExitStack() as stack:
        for router in _routers(model).values():
            seen: list[torch.Tensor] = []

            def before(_, args, seen=seen):
                seen.append(args[0])

            def replace(_, args, seen=seen, scale=router.scale):
                return (change(seen.pop(), scale, args[0]),)

            stack.enter_context(_removing(router.register_forward_pre_hook(before)))
            stack.enter_context(_removing(router.proj.register_forward_pre_hook(replace)))
        yield


def flipped(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of tokens, in percent, whose sets of experts [T, K] differ."""
    return 100 * (a.sort(-1).values != b.sort(-1).values).any(-1).double().mean().item()


def drift(base: Run, other: Run) -> dict[str, float]:
    """How far `other`'s logits are from `base`'s: mean KL divergence (nats a token), mean and largest difference, and
    the share of positions whose likeliest token is another one."""
    p, q = base.logits.log_softmax(-1), other.logits.log_softmax(-1)
    apart = (base.logits - other.logits).abs()
    top = base.logits.argmax(-1) != other.logits.argmax(-1)
    return {
        "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
        "mean_abs": apart.mean().item(),
        "max_abs": apart.max().item(),
        "top_token_changed_pct": 100 * top.double().mean().item(),
    }


def study(
    model: torch.nn.Module, ids: torch.Tensor, changes: Mapping[str, Noise | Rounding], hold: bool = False
) -> pd.DataFrame:
    """One row for each change and layer: flips made there and flips seen there, in percent of the tokens; and the
    drift of the logits at the end (the same in all rows of a change).

    direct_pct: with the unchanged model's hidden states, so by this layer's changed bits alone. seen_pct: in a pass
    with all routers changed, so with what the layers before have done to the hidden states. held_kl, with `hold`: the
    KL divergence of a pass with the same changes but the unchanged model's experts.
    """
    base, rows = forward(model, ids), []
    for label, change in changes.items():
        again = choose_again(model, base, change.make())
        run = forward(model, ids, change.make())
        ends = drift(base, run)
        if hold:
            ends["held_kl"] = drift(base, forward(model, ids, change.make(), hold=base.experts))["kl"]
        for layer, (name, chosen) in enumerate(base.experts.items()):
            made, seen = (flipped(chosen, other[name]) for other in (again, run.experts))
            rows.append({"change": label, "layer": layer, "direct_pct": made, "seen_pct": seen, **ends})
    return pd.DataFrame(rows)


def noise_study(
    model: torch.nn.Module, ids: torch.Tensor, noise: Sequence[tuple[int, float]], seeds: Sequence[int]
) -> pd.DataFrame:
    """`study` of noise (ulps, share of the elements) with several seeds: a row each, the flips averaged over layers."""
    changes = {str(each): each for each in (Noise(*size, seed) for size in noise for seed in seeds)}
    frame = study(model, ids, changes).drop(columns="layer").groupby("change", sort=False).mean()
    sizes = [(changes[label].mean_ulps, changes[label].seed) for label in frame.index]
    return pd.concat([pd.DataFrame(sizes, columns=["mean_ulps", "seed"]), frame.reset_index(drop=True)], axis=1)


def wide_router(
    changes: Mapping[str, Noise | Rounding],
    *,
    hidden_size: int,
    num_experts: int,
    top_k: int,
    tokens: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> pd.DataFrame:
    """Flips of one router of any width with random weights and hidden states: a row a change with flipped_pct.

    The choice is by logit in `dtype`, lowest id first among equals, as SGLang chooses; it does not depend on the size
    of the random weights.
    """
    from g4lab.kernels.router import topk_lowest_id
    from g4lab.kernels.router_norm import router_norm_reference

    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, hidden_size, generator=generator).to(dtype)
    scale = (0.5 + 1.5 * torch.rand(hidden_size, generator=generator)).to(dtype)
    weight = torch.randn(num_experts, hidden_size, generator=generator).to(dtype).float()
    own = router_norm_reference(hidden, scale)

    def choose(x):
        return topk_lowest_id((x.float() @ weight.T).to(dtype), top_k)[1]

    chosen = choose(own)
    rows = [(label, flipped(chosen, choose(c.make()(hidden, scale, own)))) for label, c in changes.items()]
    return pd.DataFrame(rows, columns=["change", "flipped_pct"])


def _routers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    found = routers(model)
    if not found:
        raise bad("model", type(model).__name__, "a Gemma-4 with experts (this one has no router modules)")
    return found


def _weights_of(router, probabilities, ids):
    """A router's output with the experts `ids` instead of its own: probabilities [T, E], weights [T, K], ids [T, K]."""
    weights = probabilities.gather(-1, ids)
    weights = weights / weights.sum(-1, keepdim=True)
    return probabilities, weights * router.per_expert_scale[ids], ids


@contextlib.contextmanager
def _removing(hook) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
