"""Which tile an extend-attention launch takes: rules as data, each with its evidence.

Four tables. `legacy`, `seed` and `sglang` are for SGLang's kernel, whose block_m counts the tokens of one query head.
`g4lab` is for ours, whose block_m counts rows: a token and one of the query heads that share a KV head.
"""

from dataclasses import dataclass

from g4lab.errors import bad


@dataclass(frozen=True)
class ExtendTile:
    """block_m query rows by block_n keys, computed by num_warps warps; num_stages buffers of keys and values."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n} w{self.num_warps} s{self.num_stages}"


@dataclass(frozen=True)
class Rule:
    """`tile` where all limits hold. arches: those it is for, empty for all. rows: max_len_extend * group."""

    tile: ExtendTile
    evidence: str
    arches: tuple[str, ...] = ()
    min_head_dim: int = 1
    max_head_dim: int = 512
    min_batch: int = 0
    max_len_extend: int | None = None
    max_rows: int | None = None

    def holds(self, arch: str, head_dim: int, batch: int, max_len_extend: int, group: int) -> bool:
        return (
            (not self.arches or arch in self.arches)
            and self.min_head_dim <= head_dim <= self.max_head_dim
            and batch >= self.min_batch
            and (self.max_len_extend is None or max_len_extend <= self.max_len_extend)
            and (self.max_rows is None or max_len_extend * group <= self.max_rows)
        )


_SGLANG = "SGLang 0.5.21, _get_block_sizes_for_extend_attention"
_LEGACY = "SGLang before May 2026; the tile that pyc96/sglang#4 measured against"
_SEED = "pyc96/sglang#4, timed on an H100 (data/published/extend_attention_microbench.csv)"
SMALL_SHARED = ("sm_89", "sm_120")
LEAST_BLOCKS, MOST_SPLITS = 4, 32


def _by_head_dim(evidence: str, sizes: dict[int, tuple[int, int]], *arches: str) -> list[Rule]:
    """SGLang's choice: (block_m, block_n) by the largest head dim, one stage, 4 warps up to head dim 64, else 8."""
    rules = []
    for head_dim, (m, n) in sizes.items():
        for limit, warps in ((min(64, head_dim), 4), (head_dim, 8)):
            rules.append(Rule(ExtendTile(m, n, warps, 1), evidence, arches, max_head_dim=limit))
    return rules


_SGLANG_ELSEWHERE = [
    *_by_head_dim(_SGLANG, {128: (64, 128), 256: (64, 64), 512: (32, 32)}, *SMALL_SHARED),
    *_by_head_dim(_SGLANG, {128: (128, 128), 256: (64, 64), 512: (32, 64)}, "sm_80"),
    *_by_head_dim(_SGLANG, {256: (64, 64), 512: (16, 64)}, "sm_100"),
]
_LEGACY_RULES = [*_by_head_dim(_LEGACY, {256: (128, 64), 512: (32, 64)}, "sm_90"), *_SGLANG_ELSEWHERE]

_BY_FACTS = "by compile facts and reasoning, not timed"
TABLES: dict[str, tuple[Rule, ...]] = {
    "g4lab": (
        Rule(ExtendTile(16, 64, 4, 2), _BY_FACTS, max_rows=16),
        Rule(ExtendTile(32, 64, 4, 2), _BY_FACTS, max_head_dim=256),
        Rule(ExtendTile(32, 32, 4, 2), _BY_FACTS),
    ),
    "sglang": (
        *_by_head_dim(_SGLANG, {128: (128, 64), 256: (64, 64), 512: (32, 64)}, "sm_90"),
        *_SGLANG_ELSEWHERE,
    ),
    "legacy": tuple(_LEGACY_RULES),
    "seed": (
        Rule(ExtendTile(16, 64, 4, 2), _SEED, ("sm_90",), 129, 256, min_batch=8, max_len_extend=16),
        Rule(ExtendTile(32, 64, 4, 2), _SEED, ("sm_90",), 129, 256),
        *_LEGACY_RULES,
    ),
}


def pick_rule(
    *, arch: str, head_dim: int, window: int | None, batch: int, max_len_extend: int, max_prefix: int,
    group: int = 1, table: str = "g4lab",
) -> Rule:  # fmt: skip
    """The first rule of `table` that holds for this launch, with its evidence.

    Args:
        arch: "sm_80", "sm_89", "sm_90", "sm_100" or "sm_120".
        head_dim: from 16 to 512.
        window: keys before the query that it sees, or None. No table tells layers apart by it yet.
        batch: sequences of the launch, of which the longest has max_len_extend new tokens.
        max_prefix: tokens of the longest cached prefix; `pick_splits` goes by it, no rule does yet.
        group: query heads that share a KV head.
        table: a key of TABLES.

    Raises:
        BadInput: an unknown table, or an architecture or head dim that no rule is for.
    """
    if table not in TABLES:
        raise bad("table", table, "one of " + ", ".join(TABLES))
    for rule in TABLES[table]:
        if rule.holds(arch, head_dim, batch, max_len_extend, group):
            return rule
    raise bad("arch, head_dim", (arch, head_dim), "sm_80, sm_89, sm_90, sm_100 or sm_120, and a head dim up to 512")


def pick_tile(**launch) -> ExtendTile:
    """The tile of `pick_rule`; same arguments, same errors."""
    return pick_rule(**launch).tile


def pick_splits(tile: ExtendTile, programs: int, max_keys: int, processors: int) -> int:
    """Into how many parts the keys of each tile are split: as many as fill the GPU's processors once.

    programs: tiles times KV heads. max_keys: an upper bound of the keys that one tile sees. A part has at least
    LEAST_BLOCKS blocks of keys, or combining the parts would cost more than it saves (by reasoning, not timed).
    """
    return max(1, min(processors // max(1, programs), max_keys // (LEAST_BLOCKS * tile.block_n), MOST_SPLITS))
