"""Rules that take tiles out of the tuner's list before anything is timed, each stated in words and counted.

Three kinds, in this order: what follows from the tile alone (and saves the compile), what the compile facts of a layer
say, and what a shape says. None was chosen by looking at timings.

Where rules pull apart: `work` favours few rows for the four tokens of a verify step, yet one of the two tiles reported
best for `verify burst` (pyc96/sglang#4) has twice as many and spills a little; both stay, because memory bounds that
shape and the spills hide behind the matrix work. `spills` looks at the loop that spills most, although a launch without
a prefix never enters the one over the prefix. `dominated` compares stages alone: between tiles of another size more
blocks per SM and fewer bytes moved pull apart, and that is left to the model or a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.kernels.moe_tiles import MoETile
from g4lab.tuning import arches, tile_model
from g4lab.tuning.chips import Chip
from g4lab.tuning.extend_shapes import BYTES, ExtendShape
from g4lab.tuning.facts import CompileFacts
from g4lab.tuning.tile_space import Tunable

REGISTERS = 255  # that a thread can have
SPILL_SHARE = 0.5
BOUND_RATIO = 2.0


@dataclass(frozen=True)
class Candidate:
    """A tile with its compile facts; `same`: tiles that differ in stages alone and compile to the same machine code."""

    tile: ExtendTile | MoETile
    facts: CompileFacts
    same: tuple[ExtendTile | MoETile, ...] = ()

    @property
    def tiles(self) -> tuple[ExtendTile, ...]:
        return (self.tile, *self.same)


WORDS = {
    "registers": f"accumulator and scores of the tile alone take more than a thread's {REGISTERS} registers, so they "
    "spill; not where the accumulator is in tensor memory (sm_100, block_m >= 64); not compiled",
    "buffers": "the buffers of keys and values that its stages ask for are larger than a block's shared memory (a loop "
    "that cannot be pipelined has none, but then the tile is that with one stage); not compiled",
    "compile": "does not compile, or not within the limit of CPU time",
    "shared": "one block takes more registers or shared or tensor memory than an SM has",
    "spills": "in some loop the L1 moves local memory for more than half the time that the matrix unit works",
    "same code": "the same machine code as with fewer stages: one of them stands for all",
    "dominated": "another number of stages gives as many blocks per SM, in every loop at least as much matrix work "
    "while copies are in flight, and no more spills in loops, and is better in one of these",
    "work": f"even at the matrix unit's full rate it takes {BOUND_RATIO:g} times the least that any tile needs: empty "
    "rows, keys that nobody sees, or too few programs for the SMs",
}  # fmt: skip


def before_compiling(arch: str, shape: ExtendShape, tile: ExtendTile) -> str | None:
    """The rule that takes a tile out for what it is, whatever the compiler would make of it."""
    checks = {"registers": fits_registers, "buffers": fits_buffers}
    return next((rule for rule, passes in checks.items() if not passes(arch, shape, tile)), None)


def fits_registers(arch: str, shape: ExtendShape, tile: ExtendTile) -> bool:
    """Whether WORDS["registers"] lets a tile pass."""
    in_tensor_memory = arch == "sm_100" and tile.block_m >= 64
    values = tile.block_m * (shape.head_dim + tile.block_n)
    return in_tensor_memory or values <= REGISTERS * tile.num_warps * tile_model.WARP


def fits_buffers(arch: str, shape: ExtendShape, tile: ExtendTile) -> bool:
    """Whether WORDS["buffers"] lets a tile pass: Triton keeps a block of keys and of values for each stage but one."""
    buffers = (tile.num_stages - 1) * 2 * tile.block_n * shape.head_dim * BYTES[shape.dtype]
    return buffers <= arches.arch(arch).shared_per_block


def spills_little(chip: Chip, shape: ExtendShape, each: Candidate, share: float = SPILL_SHARE) -> bool:
    """Whether WORDS["spills"] lets a tile pass."""
    matrix = tile_model.matrix_cycles(shape, each.tile, chip.flops[each.facts.mma])
    return tile_model.spill_cycles(each.facts) <= share * matrix


def merge_same(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One candidate, the one with the fewest stages, for all whose machine code is the same."""
    found: dict[tuple, Candidate] = {}
    for each in sorted(candidates, key=lambda c: astuple(c.tile)):
        code = (each.facts.sass, each.facts.shared)
        first = found.setdefault(code, each)
        if first is not each:
            found[code] = replace(first, same=(*first.same, each.tile))
    return list(found.values())


def dominated(each: Candidate, others: Sequence[Candidate]) -> bool:
    """WORDS["dominated"]: tiles that differ in stages alone are compared."""
    rivals = [other for other in others if other is not each and _but_stages(other) == _but_stages(each)]
    return any(_no_worse(rival, each) and not _no_worse(each, rival) for rival in rivals)


def _but_stages(each: Candidate) -> tuple:
    return each.tile.block_m, each.tile.block_n, each.tile.num_warps, each.facts.mma, len(each.facts.loops)


def _no_worse(a: Candidate, b: Candidate) -> bool:
    overlaps = zip(a.facts.loops, b.facts.loops, strict=True)
    return (
        a.facts.blocks_per_sm >= b.facts.blocks_per_sm
        and a.facts.loop_spills <= b.facts.loop_spills
        and all(of_a.overlapped >= of_b.overlapped for of_a, of_b in overlaps)
    )


def too_much_work(kernel: Tunable, chip: Chip, shape: ExtendShape, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that WORDS["work"] takes out."""
    bounds = [tile_model.bound(kernel, chip, shape, each.tile, each.facts.mma) for each in candidates]
    limit = BOUND_RATIO * min(bounds, default=0.0)
    return [each for each, least in zip(candidates, bounds, strict=True) if least > limit]
