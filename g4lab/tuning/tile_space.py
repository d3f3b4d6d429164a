"""The tiles of extend attention that the tuner looks at, and the work that one of them makes of a shape."""

import itertools
from dataclasses import dataclass

import numpy as np

from g4lab.errors import bad
from g4lab.kernels.extend_tiles import ExtendTile, pick_splits
from g4lab.tuning.extend_shapes import ExtendShape

BLOCK_M, WARPS, STAGES = (16, 32, 64, 128), (4, 8), (1, 2, 3)
BLOCK_N = {"sm_120": (16, 32, 64)}  # little shared memory
WINDOW = 1023  # that windowed layers are compiled with: whether there is one shapes the code, its size does not
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Tunable:
    """A kernel whose tile is tuned.

    packs: as ours: rows are (token, query head of one KV head), blocks of keys begin at the first key that a row sees,
    and keys can be split among programs. Otherwise as SGLang's: rows are tokens of one head, blocks of keys begin at
    multiples of block_n, and those that no row sees cost nothing.
    """

    kernel: str
    packs: bool

    def request(self, arch: str, shape: ExtendShape, tile: ExtendTile) -> tuple[str, str, dict]:
        """What `compile_facts` needs to know; shapes with the same layer share it."""
        layer = {"head_dim": shape.head_dim, "window": None if shape.window is None else WINDOW, "group": shape.group}
        return self.kernel, arch, {"dtype": DTYPES[shape.dtype], **layer, "tile": tile}

    def rows(self, shape: ExtendShape) -> int:
        """Query rows of one sequence and one of the heads that programs are launched for."""
        return shape.extend * (shape.group if self.packs else 1)

    def work(self, shape: ExtendShape, tile: ExtendTile, sms: int) -> "Work":
        """The programs that a launch consists of and the blocks of keys that they go through."""
        rows, group = self.rows(shape), shape.group if self.packs else 1
        heads = shape.num_kv_heads if self.packs else shape.num_q_heads
        first = np.arange(0, rows, tile.block_m)
        oldest = first // group
        newest = (np.minimum(first + tile.block_m, rows) - 1) // group
        begin = 0 * oldest if shape.window is None else np.maximum(shape.prefix + oldest - shape.window, 0)
        end = shape.prefix + newest + 1
        cached = _blocks(begin, np.minimum(end, shape.prefix), tile.block_n, aligned=not self.packs)
        new = _blocks(np.maximum(begin - shape.prefix, 0), end - shape.prefix, tile.block_n, aligned=not self.packs)
        blocks = cached + new
        copies = shape.batch * heads
        programs = len(first) * copies
        splits = pick_splits(tile, programs, int((end - begin).max()), sms) if self.packs else 1
        return Work(programs * splits, int(blocks.sum()) * copies, -(-int(blocks.max()) // splits), splits)


def _blocks(begin, end, size, aligned):
    start = begin // size * size if aligned else begin
    return np.where(end > begin, -(-(end - start) // size), 0)


@dataclass(frozen=True)
class Work:
    """programs of one launch, blocks of keys over all of them, blocks of the longest program, splits of the keys."""

    programs: int
    blocks: int
    longest: int
    splits: int


_KERNELS = (Tunable("extend_attention", packs=True), Tunable("sglang_extend_attention", packs=False))
TUNABLES = {each.kernel: each for each in _KERNELS}


def tiles(arch: str) -> list[ExtendTile]:
    """All that the tuner looks at on an architecture."""
    choices = itertools.product(BLOCK_M, BLOCK_N.get(arch, (32, 64, 128)), WARPS, STAGES)
    return [ExtendTile(*choice) for choice in choices]


def tunable(kernel: str) -> Tunable:
    """Raises BadInput for a kernel whose tile is not tuned."""
    if kernel not in TUNABLES:
        raise bad("kernel", kernel, "one of " + ", ".join(TUNABLES))
    return TUNABLES[kernel]
