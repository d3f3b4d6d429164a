"""Tiles of the expert layer's two products, as SGLang's config files have them, and the choice where none is tuned."""

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class MoETile:
    """block_m pairs of one expert by block_n output columns, block_k of the inner dimension at a time.

    group_m: how many blocks of pairs go through all columns together, for what they share in the L2.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class MoEConfig:
    """The tiles of the gate_up and of the down product, whose block_m is one: pairs are placed in blocks once."""

    gate_up: MoETile
    down: MoETile


# (pairs per expert up to, config). By reasoning, nothing timed: 16 rows, the least that the matrix unit takes, as long
# as an expert has no more; weights stream through block_k 128, deep enough that a processor has tens of KB in flight.
CONFIGS = (
    (16, MoEConfig(MoETile(16, 32, 128, 1, 4, 4), MoETile(16, 64, 64, 1, 4, 4))),
    (64, MoEConfig(MoETile(64, 64, 64, 8, 4, 3), MoETile(64, 128, 64, 8, 4, 3))),
    (None, MoEConfig(MoETile(128, 64, 64, 16, 8, 3), MoETile(128, 128, 64, 16, 8, 3))),
)


def pick_config(num_tokens: int, top_k: int, num_experts: int) -> MoEConfig:
    """The entry of CONFIGS for this many pairs per expert, were they spread evenly."""
    pairs = num_tokens * top_k / num_experts
    return next(config for limit, config in CONFIGS if limit is None or pairs <= limit)


def interpreted_config(num_pairs: int) -> MoEConfig:
    """Large blocks: a program is a NumPy call in the interpreter."""
    block_m = min(64, max(16, triton.next_power_of_2(num_pairs)))
    tile = MoETile(block_m, 128, 128, 8, 4, 1)
    return MoEConfig(tile, tile)
