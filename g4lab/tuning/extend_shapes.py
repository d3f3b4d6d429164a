"""Shapes of extend attention as data: what the tuner ranks tiles on, the benchmark times and the notebook draws.

The first eight are those of pyc96/sglang#4 (its microbenchmark's table), which gives no prefix and no window for its
chunked prefills: here they have none. The others are Gemma-4-26B-A4B's layers on one of one or two ranks: sliding ones
(16 query heads, 8 KV heads, head_dim 256, 1023 keys before the query) and full ones (16, 2, 512).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from g4lab.errors import bad

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ExtendShape:
    """`batch` sequences of `extend` new tokens after `prefix` cached ones each; `window` counts keys before the query.

    Heads are those of one rank. `dtype` (torch's name) is that of queries, keys, values, cache and output.
    """

    name: str
    batch: int
    extend: int
    prefix: int
    window: int | None
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one query head, over all sequences."""
        if self.window is None:
            return self.batch * (self.extend * self.prefix + self.extend * (self.extend + 1) // 2)
        # The first queries see fewer keys than the window holds: query i sees min(prefix + i, window) keys and itself.
        short = min(max(self.window - self.prefix, 0), self.extend)
        keys = short * self.prefix + short * (short - 1) // 2 + (self.extend - short) * self.window
        return self.batch * (keys + self.extend)

    @property
    def flops(self) -> int:
        """Multiplies and adds of Q K^T and P V over the visible pairs: the least, whatever the tile."""
        return 4 * self.head_dim * self.num_q_heads * self.pairs

    @property
    def bytes(self) -> int:
        """The least traffic: q, out, new K and V and the visible prefix's K and V, each moved once."""
        visible = self.prefix if self.window is None else min(self.prefix, self.window)
        rows = self.extend * 2 * self.num_q_heads + (self.extend + visible) * 2 * self.num_kv_heads
        return self.batch * rows * self.head_dim * BYTES[self.dtype]


def _published(name, batch, extend, prefix=0, window=None):
    return ExtendShape(name, batch, extend, prefix, window, num_q_heads=8, num_kv_heads=4, head_dim=256)


PUBLISHED: tuple[ExtendShape, ...] = (
    _published("prefill long", 1, 8192),
    _published("prefill chat", 1, 1000),
    _published("verify chat", 32, 4, 1000, 1024),
    _published("verify summarization", 32, 4, 8000, 1024),
    _published("verify burst", 32, 4, 64, 1024),
    _published("chunked prefill 8", 8, 512),
    _published("chunked prefill 16", 16, 1024),
    _published("chunked prefill 32", 32, 512),
)

# (name, batch, extend, prefix) of what one layer sees, sliding or full.
_SLIDING = (
    ("prefill long sliding", 1, 8192, 0),
    ("chunk after 24k sliding", 1, 8192, 24576),
    ("chunk 8 after 8k sliding", 8, 512, 8192),
    ("verify summarization sliding", 32, 4, 8000),
)
_FULL = (
    ("prefill long full", 1, 8192, 0),
    ("chunk after 24k full", 1, 8192, 24576),
    ("chunk 8 after 8k full", 8, 512, 8192),
    ("verify summarization full", 32, 4, 8000),
    ("verify one after 64k full", 1, 4, 65536),
)


def _layers(cases, heads, kv_heads, head_dim, window):
    return tuple(
        ExtendShape(f"{name} tp{tp}", *case, window, heads // tp, kv_heads // tp, head_dim)
        for tp in (1, 2) for name, *case in cases
    )  # fmt: skip


SHAPES: tuple[ExtendShape, ...] = (
    *PUBLISHED,
    *_layers(_SLIDING, heads=16, kv_heads=8, head_dim=256, window=1023),
    *_layers(_FULL, heads=16, kv_heads=2, head_dim=512, window=None),
)


def shape(name: str) -> ExtendShape:
    """The shape called `name`; hyphens may stand for spaces. Raises BadInput for a name that is not in SHAPES."""
    for each in SHAPES:
        if each.name == name.replace("-", " "):
            return each
    raise bad("shape", name, "one of " + ", ".join(each.name for each in SHAPES))


def select(names: Iterable[str] | None = None) -> list[ExtendShape]:
    """The shapes called `names`, in that order; None means all. Raises BadInput for an unknown name."""
    return list(SHAPES) if names is None else [shape(name) for name in names]
