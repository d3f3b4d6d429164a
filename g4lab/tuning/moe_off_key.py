"""What the lookup of the nearest key loses at sizes between the keys (vllm-project/vllm#52192 reports such losses)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from g4lab.kernels.moe_tiles import MoEConfig
from g4lab.tuning.moe_configs import nearest


def losses(
    keys: Mapping[int, MoEConfig], sizes: Iterable[int], us: Callable[[int, MoEConfig], float | None],
    own: Callable[[int], MoEConfig | None], basis: str,
) -> pd.DataFrame:  # fmt: skip
    """A row for each size: what SGLang's lookup takes there, against the config that was found for that very size.

    keys: the configs of a file. us: both products' microseconds at a size with a config, None where not known. own: the
    config for the size itself. basis: what the times are ("model estimates, not timed", "timed on nvidia-h200").

    Columns: tokens, key, nearest_us, own_us, loss_pct (how much longer with the nearest key's; below 0 where that is
    faster than all that was tried for the size), basis. Sizes of which a time is missing stay, with empty figures.
    """
    rows = []
    for tokens in sizes:
        key, best = nearest(keys, tokens), own(tokens)
        taken, least = us(tokens, keys[key]), best and us(tokens, best)
        loss = 100 * (taken / least - 1) if taken and least else None
        rows.append({"tokens": tokens, "key": key, "nearest_us": taken, "own_us": least, "loss_pct": loss})
    return pd.DataFrame(rows).assign(basis=basis)
