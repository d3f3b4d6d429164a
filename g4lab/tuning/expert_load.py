"""What routing makes of a batch: tokens of each expert, blocks and their empty rows, weights touched.

A block has pairs (token, expert) of one expert only, so each expert's last block is padded, on average by half of
block_m. Two costs follow, and they pull apart. Weights: each touched expert's are read from memory once at least and
asked for once a block, so few large blocks ask the L2 for less. Matrix work: the matrix unit multiplies empty rows as
well, so small blocks waste less.

Exact for given ids, `of_ids` by the kernel's own `place` and `of_counts` by arithmetic; `expected` in closed form for
tokens that route independently of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from g4lab.errors import bad
from g4lab.gemma4.costs import distinct_experts
from g4lab.kernels.fused_moe import place


@dataclass(frozen=True)
class Load:
    """Of one batch in blocks of block_m rows; expectations are fractions.

    pairs: (token, expert) pairs that some expert has. touched: experts with a pair. busiest: pairs of the expert that
    has the most (None for an expectation). blocks: of all experts.
    """

    block_m: int
    pairs: float
    touched: float
    busiest: int | None
    blocks: float

    @property
    def rows(self) -> float:
        """Rows that the matrix unit multiplies, empty ones included."""
        return self.blocks * self.block_m

    @property
    def wasted(self) -> float:
        """Share of the rows that is empty, from 0 to 1."""
        return 1 - self.pairs / self.rows if self.rows else 0.0

    @property
    def reads(self) -> float:
        """How often a touched expert's weights are asked for, on average: 1 is once."""
        return self.blocks / self.touched if self.touched else 0.0


def counts(topk_ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    """int64 [num_experts]: pairs of each expert among ids [T, K]; ids that no expert has count nowhere."""
    flat = topk_ids.flatten().long()
    return torch.bincount(flat[(flat >= 0) & (flat < num_experts)], minlength=num_experts)


def of_counts(pairs: torch.Tensor, block_m: int) -> Load:
    """The load of an expert layer whose experts have `pairs` int64 [E].

    Raises:
        BadInput: block_m below 1.
    """
    if block_m < 1:
        raise bad("block_m", block_m, "1 or more")
    blocks = -(-pairs // block_m)
    return Load(block_m, int(pairs.sum()), int((pairs > 0).sum()), int(pairs.max()), int(blocks.sum()))


def of_ids(topk_ids: torch.Tensor, num_experts: int, block_m: int) -> Load:
    """The load of ids [T, K] as `g4lab.kernels.fused_moe.place` lays them out, read off its blocks."""
    if topk_ids.numel() == 0:
        return Load(block_m, 0, 0, 0, 0)
    _, block_expert, block_rows = place(topk_ids.contiguous(), num_experts, block_m)
    used = block_expert < num_experts
    pairs = torch.zeros(num_experts, dtype=torch.int64, device=topk_ids.device)
    pairs.index_add_(0, block_expert[used].long(), block_rows[used].long())
    return Load(block_m, int(pairs.sum()), int((pairs > 0).sum()), int(pairs.max()), int(used.sum()))


def expected(
    tokens: int, num_experts: int, top_k: int, block_m: int, probabilities: Sequence[float] | None = None
) -> Load:
    """The mean load of `tokens` tokens that each choose top_k experts, independently of each other.

    An expert's pairs are then binomial in `tokens` with its chance, top_k / num_experts for uniform routing, where
    C(E - 1, K) / C(E, K) = 1 - K / E of the choices leave it out; the blocks of an expert are sum over j of the chance
    that it has more than j * block_m pairs.

    probabilities: [num_experts], as `g4lab.gemma4.costs.distinct_experts` takes them; None for uniform routing.

    Raises:
        BadInput: as `distinct_experts` does, and for a block_m below 1.
    """
    touched = distinct_experts(num_experts, top_k, tokens, probabilities)
    if block_m < 1:
        raise bad("block_m", block_m, "1 or more")
    chances = torch.tensor(probabilities or [top_k / num_experts], dtype=torch.float64)[:, None]
    n = torch.arange(tokens + 1, dtype=torch.float64)
    ways = torch.lgamma(torch.tensor(tokens + 1.0).double()) - torch.lgamma(n + 1) - torch.lgamma(tokens - n + 1)
    mass = (ways + torch.xlogy(n, chances) + torch.special.xlog1py(tokens - n, -chances)).exp()
    blocks = (mass * (n / block_m).ceil()).sum().item() * (1 if probabilities else num_experts)
    return Load(block_m, tokens * top_k, touched, None, blocks)


def bytes_touched(load: Load, hidden: int, width: int, element_size: int = 2) -> pd.DataFrame:
    """MB (10^6) of both products: rows "gate_up" and "down", columns weights (each touched expert's once, from memory),
    asked (once for each block, from the L2 or memory) and activations (pairs in and out, the least)."""
    weights = {"gate_up": 2 * width * hidden, "down": hidden * width}
    moved = {"gate_up": load.pairs * (hidden + width), "down": load.pairs * (width + hidden)}
    rows = {
        name: {"weights": load.touched * size, "asked": load.blocks * size, "activations": moved[name]}
        for name, size in weights.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index") * element_size / 1e6


def table(batches: Mapping[str, Iterable[torch.Tensor]], num_experts: int, block_ms: Iterable[int]) -> pd.DataFrame:
    """A row for each batch and block_m: routing (the key), tokens, block_m, pairs, touched, busiest, blocks,
    wasted_pct (of the rows) and reads (of a touched expert's weights)."""
    rows = []
    for routing, many in batches.items():
        for topk_ids in many:
            pairs = counts(topk_ids, num_experts)
            for block_m in block_ms:
                load = of_counts(pairs, block_m)
                seen = {name: getattr(load, name) for name in ("block_m", "pairs", "touched", "busiest", "blocks")}
                shares = {"wasted_pct": 100 * load.wasted, "reads": load.reads}
                rows.append({"routing": routing, "tokens": len(topk_ids), **seen, **shares})
    return pd.DataFrame(rows)
