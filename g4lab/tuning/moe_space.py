"""The tiles of the expert layer's two products that the tuner looks at, and the rules that take some of them out.

Rules as in `tile_rules`: what follows from the tile alone saves the compile; then what compile facts say; then what a
shape says. None was chosen by looking at timings. Stages are not compared with each other: more of them mean fewer
blocks on an SM but more bytes in flight, which a product that streams weights needs; the model weighs that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from g4lab.errors import bad
from g4lab.kernels.moe_tiles import MoETile
from g4lab.tuning import arches
from g4lab.tuning.moe_shapes import BYTES, MoEShape
from g4lab.tuning.tile_model import WARP
from g4lab.tuning.tile_rules import BOUND_RATIO, REGISTERS, SPILL_SHARE

PRODUCTS = ("gate_up", "down")
WARPS = (4, 8)
LEAST_OUTPUTS, EMPTY = 1024, 8
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# block_m: (block_n, {block_k: num_stages}). Blocks of few rows stream weights: narrow and deep. Blocks of many rows
# feed the matrix unit: wide, and as deep as shared memory allows.
SPACE = {
    16: ((32, 64, 128), {64: (3, 4, 5), 128: (2, 3, 4)}),
    32: ((64, 128), {64: (3, 4, 5), 128: (2, 3, 4)}),
    64: ((64, 128), {64: (3, 4), 128: (2, 3)}),
    128: ((128, 256), {64: (3, 4)}),
}
WORDS = {
    "warps": f"8 warps of which each has fewer than {LEAST_OUTPUTS} of the block's outputs: 4 do; not compiled",
    "registers": f"its accumulators alone take more than a thread's {REGISTERS} registers; not compiled",
    "buffers": "the copies that its stages keep in flight are larger than a block's shared memory; not compiled",
    "rows": f"more rows than 16 and than {EMPTY} times the pairs that a touched expert has on average",
    "compile": "does not compile, or not within the limit of CPU time",
    "shared": "one block takes more registers or shared or tensor memory than an SM has",
    "spills": f"in some loop the L1 moves local memory for more than {SPILL_SHARE:.0%} of the matrix unit's time",
    "same code": "the same machine code as with fewer stages: one of them stands for all",
    "work": f"even at the full rates of memory, L2 and matrix unit it takes {BOUND_RATIO:g} times the least that any "
    "tile needs: empty rows, weights asked for again and again, columns of a last step that are not there",
}


@dataclass(frozen=True)
class Tunable:
    """A kernel whose two products are tuned; sides: weight tiles in one program of gate_up, 2 where gate and up are
    side by side in it, for the activation in its epilogue."""

    kernel: str
    sides: int

    def inner(self, shape: MoEShape, product: str) -> int:
        """The dimension summed over."""
        return shape.hidden if product == "gate_up" else shape.width

    def outer(self, shape: MoEShape, product: str) -> int:
        """The output columns that programs share out among each other."""
        return shape.hidden if product == "down" else 2 * shape.width // self.sides

    def weights(self, product: str, tile: MoETile) -> int:
        """Rows of weights in one program's step."""
        return tile.block_n * (self.sides if product == "gate_up" else 1)

    def request(self, arch: str, shape: MoEShape, product: str, tile: MoETile) -> tuple[str, str, dict]:
        """What `compile_facts` needs to know. group_m orders programs and leaves the code as it is but for a number."""
        layer = {"hidden": shape.hidden, "width": shape.width, "num_experts": shape.num_experts, "top_k": shape.top_k}
        return self.kernel, arch, {
            "dtype": DTYPES[shape.dtype], "product": product, **layer, "tile": replace(tile, group_m=1),
        }  # fmt: skip

    def alike(self, shape: MoEShape, product: str, tile: MoETile) -> tuple:
        """Shapes that agree here compile to the same loop, sizes and all else aside: what is masked in it."""
        ragged = self.inner(shape, product) % tile.block_k != 0, self.outer(shape, product) % tile.block_n != 0
        return product, replace(tile, group_m=1), shape.dtype, ragged[: self.sides]  # SGLang's never masks columns


_KERNELS = (Tunable("sglang_fused_moe", sides=1), Tunable("fused_moe", sides=2))
TUNABLES = {each.kernel: each for each in _KERNELS}


def tunable(kernel: str) -> Tunable:
    """Raises BadInput for a kernel that is no expert layer's."""
    if kernel not in TUNABLES:
        raise bad("kernel", kernel, "one of " + ", ".join(TUNABLES))
    return TUNABLES[kernel]


def tiles() -> list[MoETile]:
    """All of SPACE, with group_m 1: `grouped` sets it."""
    found = []
    for block_m, (block_ns, depths) in SPACE.items():
        for block_n, warps, block_k in itertools.product(block_ns, WARPS, depths):
            found += [MoETile(block_m, block_n, block_k, 1, warps, stages) for stages in depths[block_k]]
    return found


def grouped(tile: MoETile, blocks_per_expert: float) -> MoETile:
    """With group_m the power of two below an expert's blocks, 16 at most: those share its weights. By reasoning."""
    return replace(tile, group_m=min(16, 1 << int(blocks_per_expert).bit_length() >> 1 or 1))


def before_compiling(what: Tunable, arch: str, product: str, tile: MoETile, dtype: str = "bfloat16") -> str | None:
    """The rule that takes a tile out for what it is, whatever the compiler would make of it."""
    outputs = tile.block_m * what.weights(product, tile)
    if tile.num_warps > min(WARPS) and outputs < LEAST_OUTPUTS * tile.num_warps:
        return "warps"
    if outputs > REGISTERS * tile.num_warps * WARP:
        return "registers"
    step = (tile.block_m + what.weights(product, tile)) * tile.block_k * BYTES[dtype]
    return "buffers" if (tile.num_stages - 1) * step > arches.arch(arch).shared_per_block else None


def mostly_empty(tile: MoETile, pairs_per_expert: float) -> bool:
    """Whether WORDS["rows"] takes a tile out."""
    return tile.block_m > max(16, EMPTY * pairs_per_expert)


def too_much(bounds: Sequence[float]) -> list[bool]:
    """Which of these bounds WORDS["work"] takes out."""
    return [each > BOUND_RATIO * min(bounds) for each in bounds]
