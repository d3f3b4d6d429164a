"""What a tile costs on a shape, in cycles: a lower bound that no schedule beats, and an estimate to rank by.

LIMITS says what the estimate leaves out; nothing in it is fitted to measured times.
"""

from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.tuning.chips import ISSUES, L1_BYTES, LATENCY, Chip
from g4lab.tuning.extend_shapes import ExtendShape
from g4lab.tuning.facts import CompileFacts
from g4lab.tuning.tile_space import Tunable

LIMITS = (
    "The model adds up matrix work by unit, instructions issued, spill traffic, key and value traffic from the L2 and "
    "the latency that no copy in flight hides, shared by the blocks that an SM holds, over programs spread evenly. It "
    "knows no bank conflicts, no overlap of softmax and matrix work inside a block, no cost of blocks that are skipped "
    "and no second launch where keys are split. It tells directions: it does not rank near-equals; its times are no "
    "claims."
)
WARP = 32


def matrix_cycles(shape: ExtendShape, tile: ExtendTile, rate: float) -> float:
    """Both products of one block of keys on one SM whose matrix unit makes `rate` FLOPs a cycle."""
    return 4 * tile.block_m * tile.block_n * shape.head_dim / rate


def spill_cycles(facts: CompileFacts) -> float:
    """The L1's time for one iteration's spills of a block, in the loop that spills the most."""
    return facts.loop_spills * WARP * facts.num_warps / L1_BYTES


def bound(kernel: Tunable, chip: Chip, shape: ExtendShape, tile: ExtendTile, unit: str) -> float:
    """Cycles that the launch takes at least: its blocks of keys, masked and empty rows included, at the full rate of
    the matrix unit with no SM idle, no program faster than its own blocks, and the shape's bytes at full bandwidth."""
    work = kernel.work(shape, tile, chip.sms)
    blocks = max(work.blocks / chip.sms, work.longest)
    return max(blocks * matrix_cycles(shape, tile, chip.flops[unit]), shape.bytes / chip.dram / chip.sms)


def estimate(
    kernel: Tunable, chip: Chip, shape: ExtendShape, tile: ExtendTile, facts: CompileFacts
) -> tuple[float, float]:
    """Cycles of the launch by the model of LIMITS, and of all but its memory traffic, which tells apart the tiles that
    memory makes equal."""
    work = kernel.work(shape, tile, chip.sms)
    resident = max(1, min(facts.blocks_per_sm, -(-work.programs // chip.sms)))
    matrix = matrix_cycles(shape, tile, chip.flops[facts.mma])
    issue = min(loop.instructions for loop in facts.loops) * facts.num_warps / ISSUES
    loads = 4 * tile.block_n * shape.head_dim / chip.l2
    spills = spill_cycles(facts)
    hidden = sum(loop.overlapped / loop.matrix for loop in facts.loops) / len(facts.loops) * matrix
    exposed = max(LATENCY - hidden, 0.0)
    alone = (2 * matrix if facts.serialized else matrix) + issue + spills + exposed
    each = max(matrix, issue, spills, loads, alone / resident)
    cycles = max(work.blocks / chip.sms * each, work.longest * max(each, alone))
    return max(cycles, shape.bytes / chip.dram / chip.sms), cycles
