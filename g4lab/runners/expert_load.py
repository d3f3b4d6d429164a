"""How a served model routes steps of several sizes: what has to stand beside every MoE and serving figure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.runners.server import sglang_server

if TYPE_CHECKING:
    import pandas as pd

PATCH = "expert_load"
_FIRST_TOKEN = 3  # below are special tokens


def expert_load(
    model: str | Path, tokens: Sequence[int] = (1, 8, 32, 1024), patches: str = "none", args: Sequence[str] = (),
    **server: Any,
) -> pd.DataFrame:  # fmt: skip
    """Serve `model` without CUDA graphs, prefill one prompt of random tokens for each size, and look at the routing.

    Returns one row a size and MoE layer: tokens, layer, experts, used (experts that a token chose), most_tokens_on_one.

    Args:
        tokens: of each prompt, which must fit one step (--chunked-prefill-size). args, server: as sglang_server's.

    Raises:
        BadInput: no size, or one below 1.
        Unavailable: the server failed, splits a prompt, or has no layer with experts.
    """
    import pandas as pd

    if not tokens or min(tokens) < 1:
        raise bad("tokens", list(tokens), "sizes from 1")
    if env.has_gpu() and server.get("device") != "cpu":
        args = [*args, "--disable-cuda-graph"]  # the patch waits for the device, which a capture does not allow
    generator, found = random.Random(1), []
    with sglang_server(model, f"{patches},{PATCH}", args, **server) as running:
        for size in sorted(set(tokens)):  # it keeps the largest batch, so small ones come first
            running.generate([generator.randrange(_FIRST_TOKEN, running.vocab_size) for _ in range(size)], 1)
            rows = running.expert_load()
            if not rows or {row["tokens"] for row in rows} != {size}:
                seen = sorted({row["tokens"] for row in rows})
                raise Unavailable(f"asked for a step of {size} tokens, the layers with experts saw {seen or 'none'}")
            found += rows
    return pd.DataFrame(found)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row a size: experts used by the mean and by the worst layer, and the most tokens on one expert."""
    by = found.groupby("tokens", as_index=False)
    return by.agg(
        layers=("layer", "size"), experts=("experts", "max"), used_mean=("used", "mean"), used_least=("used", "min"),
        most_tokens_on_one=("most_tokens_on_one", "max"),
    )  # fmt: skip


def values(found: pd.DataFrame) -> Mapping[str, Any]:
    """For a record: both tables as lists of rows."""
    return {"sizes": summary(found).to_dict("records"), "layers": found.to_dict("records")}
