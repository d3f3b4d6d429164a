"""The compile-ahead table: what the compiler makes of every kernel of the lab, and of its peers, for GPUs not here."""

from collections.abc import Callable, Sequence

import pandas as pd

from g4lab.errors import bad
from g4lab.kernels.extend_tiles import pick_tile
from g4lab.kernels.moe_tiles import pick_config
from g4lab.tuning.extend_shapes import shape
from g4lab.tuning.facts import compile_many
from g4lab.tuning.machine_code import parse

ARCHES = ("sm_90", "sm_100")
SLIDING = {"num_q_heads": 16, "num_kv_heads": 8, "head_dim": 256}  # the 26B-A4B's layers
FULL = {"num_q_heads": 16, "num_kv_heads": 2, "head_dim": 512}
HIDDEN = (2816, 5376)  # the 26B-A4B's and the 31B's

# The choices that change the machine code, for each kernel. Heads and widths are those that Gemma-4 has.
_HEADS = [
    {"mode": mode, **shape, "rows": rows}
    for mode, shape in (("QKV", SLIDING), ("QK", FULL), ("Q", SLIDING), ("Q", FULL)) for rows in (1, 4)
]  # fmt: skip
_ENDS = [{"hidden": n, "rounding": "eager"} for n in HIDDEN] + [{"hidden": HIDDEN[0], "rounding": "fp32"}]


def _extend(table: str, *names: str) -> list[dict]:
    """What a table of tiles chooses on sm_90 for these shapes of extend attention."""
    found = []
    for each in map(shape, names):
        launch = {"batch": each.batch, "max_len_extend": each.extend, "max_prefix": each.prefix}
        layer = {"head_dim": each.head_dim, "window": each.window, "group": each.group}
        found.append({**layer, "tile": pick_tile(arch="sm_90", table=table, **layer, **launch)})
    return found


_EXPERTS = [
    {"product": product, "tile": getattr(pick_config(tokens, 8, 128), product)}
    for tokens in (16, 8192) for product in ("gate_up", "down")
]  # fmt: skip
_PREFILL = ("prefill long sliding tp1", "prefill long full tp1")
CHOICES: dict[str, list[dict]] = {
    "router": [{"dtype": dtype} for dtype in ("bf16", "fp32")],
    "qkv_norm": _HEADS,
    "qkv_norm_rope_kv": [
        *_HEADS,
        {**_HEADS[0], "cache_dtype": "e4m3"},
        {**_HEADS[3], "cache_dtype": "e4m3"},
        {**_HEADS[0], "rope_rounding": "eager"},
    ],
    "router_norm": [{"rounding": how} for how in ("transformers", "two_step", "sglang", "fp32")],
    "residual_norm": _ENDS,
    "dual_residual_norm": _ENDS,
    "extend_attention": _extend("g4lab", *_PREFILL, "verify summarization sliding tp1"),
    "sglang_extend_attention": _extend("sglang", *_PREFILL),
    "fused_moe": _EXPERTS,
    "sglang_fused_moe": _EXPERTS[2:],
    "sglang_router": [{}],
    "sglang_qkv_norm": [{"mode": "QKV", **SLIDING, "tokens": t} for t in (1, 512)]
    + [{"mode": "QKV", **FULL, "tokens": t} for t in (1, 512)],
    "sglang_residual_norm": [{"hidden_size": n} for n in HIDDEN],
    "sglang_dual_residual_norm": [{"hidden_size": n} for n in HIDDEN],
}


def compile_table(
    kernels: Sequence[str] | None = None, arches: Sequence[str] = ARCHES,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row per kernel, choice and architecture, compiled here (or cached): kind of figure "live", no time measured.

    Columns: kernel, choices, arch, registers (per thread), spill_stores, spill_loads, shared (bytes), num_warps,
    blocks_per_sm, mma (matrix unit), loop_spills (bytes per iteration of a loop with matrix instructions), pipelined,
    instructions (SASS, nop and padding included).

    Raises:
        BadInput: a kernel or an architecture that is not known.
        Unavailable: a kernel does not compile here.
    """
    kernels = list(CHOICES) if kernels is None else list(kernels)
    for name in kernels:
        if name not in CHOICES:
            raise bad("kernels", name, "some of " + ", ".join(CHOICES))
    requests = [(name, arch, choices) for name in kernels for choices in CHOICES[name] for arch in arches]
    return pd.DataFrame([_row(facts) for facts in compile_many(requests, progress)])


def _row(facts) -> dict:
    choices = " ".join(f"{name}={value}" for name, value in facts.choices.items())
    columns = ("registers", "spill_stores", "spill_loads", "shared", "num_warps", "blocks_per_sm")
    columns += ("mma", "loop_spills", "pipelined")
    row = {"kernel": facts.kernel, "choices": choices, "arch": facts.arch}
    return row | {name: getattr(facts, name) for name in columns} | {"instructions": len(parse(facts.sass))}
