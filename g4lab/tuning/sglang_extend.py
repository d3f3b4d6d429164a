"""SGLang's extend attention with another tile than the one it chooses, without changing SGLang.

In SGLang 0.5.21 `extend_attention_fwd` asks `_get_block_sizes_for_extend_attention(Lq, Lv)` for block sizes and warps,
which sees head dims alone, and launches `_fwd_kernel[grid](...)` with num_stages=1 for every shape that Gemma-4 has.
`tiled` stands between it and both of these names; the grid follows, because the launcher makes it from the block size.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from g4lab.errors import Unavailable

if TYPE_CHECKING:
    from g4lab.kernels.extend_tiles import ExtendTile

MODULE = "sglang.kernels.ops.attention.extend_attention"
FORWARD, KERNEL, BLOCK_SIZES = "extend_attention_fwd", "_fwd_kernel", "_get_block_sizes_for_extend_attention"
_LOCK = threading.RLock()


def module():
    """SGLang's module of extend attention.

    Raises:
        Unavailable: SGLang is not installed, or names the function, its kernel or its choice of blocks otherwise.
    """
    try:
        found = importlib.import_module(MODULE)
    except ImportError as error:
        raise Unavailable(f"SGLang's {FORWARD} cannot be imported: {error}") from error
    if missing := [name for name in (FORWARD, KERNEL, BLOCK_SIZES) if not hasattr(found, name)]:
        raise Unavailable(f"this SGLang's {MODULE} has no {missing[0]}")
    return found


@contextlib.contextmanager
def tiled(tile: ExtendTile) -> Iterator[None]:
    """Every call of SGLang's `extend_attention_fwd` inside launches with `tile`, whose block_m counts tokens of a head.

    Takes effect on launches, so under a CUDA graph at the capture. A call from another thread meanwhile gets it too;
    blocks in two threads wait for each other.

    Raises:
        Unavailable: as `module`.
    """
    home = module()
    with _LOCK:
        choose, kernel = getattr(home, BLOCK_SIZES), getattr(home, KERNEL)

        def block_sizes(head_dim, value_dim):
            return *choose(head_dim, value_dim)[:3], tile.block_m, tile.block_n, tile.num_warps

        setattr(home, BLOCK_SIZES, block_sizes)
        setattr(home, KERNEL, _Staged(kernel, tile.num_stages))
        try:
            yield
        finally:
            setattr(home, BLOCK_SIZES, choose)
            setattr(home, KERNEL, kernel)


class _Staged:
    """A kernel whose launches, `kernel[grid](...)`, all have `num_stages`."""

    def __init__(self, kernel, num_stages: int):
        self.kernel, self.num_stages = kernel, num_stages

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            return self.kernel[grid](*args, **{**kwargs, "num_stages": self.num_stages})

        return launch
