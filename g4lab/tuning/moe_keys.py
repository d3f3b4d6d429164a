"""What a config of the expert layer means, key by key: programs, steps, copies in flight, empty rows; no GPU asked.

And SGLang's own files, read from the installed package (SGLang PR #26588 added those for 26B-A4B on an H200).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import pandas as pd

from g4lab.errors import Unavailable
from g4lab.kernels.moe_tiles import MoEConfig
from g4lab.tuning import expert_load, moe_configs, moe_shapes
from g4lab.tuning.chips import chip
from g4lab.tuning.moe_shapes import BYTES, MoEShape

UPSTREAM_TRITON = "3.6.0"  # whose folder of SGLang's has the files for an H200


def upstream_root() -> Path:
    """What stands for SGLANG_MOE_CONFIG_DIR in the installed SGLang. Raises Unavailable without one."""
    found = importlib.util.find_spec("sglang")
    if not found:
        raise Unavailable("SGLang is not installed")
    return Path(found.submodule_search_locations[0]) / "srt/layers/moe/moe_runner/triton_utils"


def upstream_files(num_experts: int = 128, width: int = 704, device: str = "NVIDIA H200") -> tuple[Path, Path]:
    """SGLang's files for the gate_up and the down product. Raises Unavailable where one is missing."""
    home = moe_configs.folder(upstream_root(), UPSTREAM_TRITON)
    files = [home / moe_configs.file_name(num_experts, width, device, down=down) for down in (False, True)]
    for path in files:
        if not path.is_file():
            raise Unavailable(f"the installed SGLang has no {path.name}")
    return files[0], files[1]


def upstream(num_experts: int = 128, width: int = 704, device: str = "NVIDIA H200") -> dict[int, MoEConfig]:
    """Those files as {tokens: MoEConfig}. Raises Unavailable as `upstream_files`."""
    upstream_files(num_experts, width, device)
    return moe_configs.load(upstream_root(), num_experts, width, device, triton=UPSTREAM_TRITON)


def keyed(configs: Mapping[int, MoEConfig], tokens: int) -> tuple[int, MoEConfig]:
    """The key that SGLang takes for this many tokens, and its config."""
    key = moe_configs.nearest(configs, tokens)
    return key, configs[key]


def launches(config: MoEConfig, shape: MoEShape, arch: str = "sm_90", *, paired: bool = False) -> pd.DataFrame:
    """A row for each product, "gate_up" and "down", expectations under the shape's routing.

    Columns: inner (the dimension summed over), steps (of block_k), prologue (steps whose copies are issued before the
    first product), slack_pct (of the matrix work, columns of a last step that are not there), columns (tiles side by
    side), blocks, programs, per_sm (programs for each SM), in_flight_kib (of its copies), reads and
    empty_pct (of a touched expert's weights; of the rows).

    paired: gate and up are two tiles of one program, as in g4lab's kernel; SGLang's has them side by side.
    """
    chances = moe_shapes.chances(shape.routing, shape.num_experts, shape.top_k).tolist()
    load = expert_load.expected(shape.tokens, shape.num_experts, shape.top_k, config.gate_up.block_m, chances)
    sides = 2 if paired else 1
    products = {
        "gate_up": (config.gate_up, shape.hidden, 2 * shape.width // sides, sides),
        "down": (config.down, shape.width, shape.hidden, 1),
    }
    rows = {}
    for name, (tile, inner, outer, weights) in products.items():
        steps, columns = ceil(inner / tile.block_k), ceil(outer / tile.block_n)
        stage = (tile.block_m + weights * tile.block_n) * tile.block_k * BYTES[shape.dtype]
        rows[name] = {
            "inner": inner,
            "steps": steps,
            "prologue": min(tile.num_stages - 1, steps),
            "slack_pct": 100 * (steps * tile.block_k / inner - 1),
            "columns": columns,
            "blocks": load.blocks,
            "programs": load.blocks * columns,
            "per_sm": load.blocks * columns / chip(arch).sms,
            "in_flight_kib": min(tile.num_stages - 1, steps) * stage / 1024,
            "reads": load.reads,
            "empty_pct": 100 * load.wasted,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("product")


def by_key(
    configs: Mapping[int, MoEConfig], shape: MoEShape, sizes: Sequence[int] | None = None, **options
) -> pd.DataFrame:
    """`launches` at each number of tokens (default: the keys), with columns tokens, key, product and tile first."""
    frames = []
    for tokens in sizes or list(configs):
        key, config = keyed(configs, tokens)
        rows = launches(config, replace(shape, tokens=tokens), **options).reset_index()
        rows.insert(0, "tokens", tokens)
        rows.insert(1, "key", key)
        rows.insert(3, "tile", [short(getattr(config, product)) for product in rows["product"]])
        frames.append(rows)
    return pd.concat(frames, ignore_index=True)


def short(tile) -> str:
    """A tile in a word: rows x columns x inner, group, warps, stages."""
    return f"{tile.block_m}x{tile.block_n}x{tile.block_k} g{tile.group_m} w{tile.num_warps} s{tile.num_stages}"
