"""What a tile costs one product of the expert layer, in cycles: a bound that no schedule beats, and an estimate.

LIMITS says what the estimate leaves out; nothing in it is fitted to measured times.
"""

from __future__ import annotations

import functools
from math import ceil

from g4lab.kernels.moe_tiles import MoETile
from g4lab.tuning import expert_load, tile_model
from g4lab.tuning.chips import ISSUES, LATENCY, Chip
from g4lab.tuning.facts import CompileFacts
from g4lab.tuning.machine_code import parse
from g4lab.tuning.moe_shapes import BYTES, MoEShape, chances
from g4lab.tuning.moe_space import Tunable

LIMITS = (
    "The model reads each touched expert's weights from memory once, however many of its blocks ask for them; shares "
    "programs out evenly over the SMs in whole waves; gives a step the longest of its matrix work (padding included), "
    "instructions issued, loads from the L2, spills, and the latency over the steps in flight. Blocks and experts "
    "touched are expectations under the routing. It knows no bank conflicts, no weights that leave the L2 between two "
    "blocks of an expert, and so no group_m, no launch, and no cost of placing pairs, which block_m changes as well. "
    "It tells directions: it does not rank near-equals; its times are no claims."
)


@functools.lru_cache(maxsize=4096)
def load(shape: MoEShape, block_m: int) -> expert_load.Load:
    """Blocks and touched experts that the shape's routing makes expected."""
    likely = None if shape.routing == "uniform" else chances(shape.routing, shape.num_experts, shape.top_k).tolist()
    return expert_load.expected(shape.tokens, shape.num_experts, shape.top_k, block_m, likely)


def moved(what: Tunable, shape: MoEShape, product: str) -> float:
    """Bytes from and to memory, the least: touched weights, and for each pair a row of h; x or the pairs' results."""
    weights = load(shape, 16).touched * shape.hidden * shape.width * (2 if product == "gate_up" else 1)
    h = shape.pairs * shape.width * (2 // what.sides if product == "gate_up" else 1)
    rows = shape.hidden * (shape.tokens if product == "gate_up" else shape.pairs)
    return (weights + h + rows) * BYTES[shape.dtype]


def step_cycles(what: Tunable, product: str, tile: MoETile, rate: float) -> float:
    """The matrix work of one step of block_k on one SM whose matrix unit makes `rate` FLOPs a cycle."""
    return 2 * tile.block_m * what.weights(product, tile) * tile.block_k / rate


def load_cycles(what: Tunable, chip: Chip, shape: MoEShape, product: str, tile: MoETile) -> float:
    """One step's rows of x or h and of weights from the L2, with all SMs reading."""
    return (tile.block_m + what.weights(product, tile)) * tile.block_k * BYTES[shape.dtype] / chip.l2


def steps(what: Tunable, shape: MoEShape, product: str, tile: MoETile) -> int:
    """Of block_k, in one program."""
    return ceil(what.inner(shape, product) / tile.block_k)


def programs(what: Tunable, shape: MoEShape, product: str, tile: MoETile) -> float:
    """That have pairs, expected."""
    return load(shape, tile.block_m).blocks * ceil(what.outer(shape, product) / tile.block_n)


def bound(what: Tunable, chip: Chip, shape: MoEShape, product: str, tile: MoETile, unit: str) -> float:
    """Cycles at least: padded rows and columns at the full rate of the matrix unit and all that programs ask for at
    the L2's, with no SM idle and no program split, and the bytes at full bandwidth."""
    matrix = step_cycles(what, product, tile, chip.flops[unit])
    step = max(matrix, load_cycles(what, chip, shape, product, tile))
    each = max(programs(what, shape, product, tile) / chip.sms, 1.0) * steps(what, shape, product, tile)
    return max(each * step, moved(what, shape, product) / chip.dram / chip.sms)


def estimate(
    what: Tunable, chip: Chip, shape: MoEShape, product: str, tile: MoETile, facts: CompileFacts
) -> tuple[float, float]:
    """Cycles by the model of LIMITS, and of all but memory traffic, which tells apart what memory makes equal."""
    count, trips = programs(what, shape, product, tile), steps(what, shape, product, tile)
    waves = max(1, ceil(count / chip.sms))
    resident = max(1, min(facts.blocks_per_sm, waves))
    body = max((loop.instructions for loop in facts.loops), default=0) or len(parse(facts.sass)) / trips
    in_flight = resident * (max(1, tile.num_stages - 1) if facts.pipelined or not facts.loops else 1)
    each = max(
        step_cycles(what, product, tile, chip.flops[facts.mma]),
        body * facts.num_warps / ISSUES,
        load_cycles(what, chip, shape, product, tile),
        tile_model.spill_cycles(facts),
        LATENCY / in_flight,
    )
    computing = waves * trips * each + LATENCY
    return max(computing, moved(what, shape, product) / chip.dram / chip.sms), computing
