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
    """`tile` where all limits hold. max_rows: of max_len_extend * group, the rows of one sequence and KV head at most;
    min_total_rows: of that times the batch."""

    tile: ExtendTile
    evidence: str
    arches: tuple[str, ...]
    min_head_dim: int = 1
    max_head_dim: int = 512
    min_batch: int = 0
    max_len_extend: int | None = None
    max_rows: int | None = None
    min_total_rows: int = 0

    def holds(self, arch: str, head_dim: int, batch: int, max_len_extend: int, group: int) -> bool:
        rows = max_len_extend * group
        return (
            arch in self.arches
            and self.min_head_dim <= head_dim <= self.max_head_dim
            and batch >= self.min_batch
            and (self.max_len_extend is None or max_len_extend <= self.max_len_extend)
            and (self.max_rows is None or rows <= self.max_rows)
            and batch * rows >= self.min_total_rows
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

# Ours: by compile facts and reasoning, nothing timed yet.
_FLIGHT = (
    "compile facts: no spills, and with three stages a block's copies stay in flight while another is computed (with "
    "two, mma.sync code waits for them at once); few rows are bound by memory; not timed"
)
_WGMMA = "compile facts: wgmma, copies pipelined, nothing spilled in the loops over full blocks; not timed"
_FEW = (
    "compile facts: wgmma, nothing spilled in loops, all of its work overlaps copies in three of four loops; half the "
    "rows, where a batch has too few for larger tiles to fill 132 processors; not timed"
)
_WIDE = (
    "compile facts: wgmma at head dim 512, copies pipelined, at most 4 bytes a thread spilled in the loops over full "
    "blocks, up to 172 in the masked ones; not timed"
)
_FITS = "compile facts: the largest tile that fits shared memory and hardly spills; not timed"
ENOUGH_ROWS = 4096


def _ours(arches: str | tuple[str, ...], max_head_dim: int, tile: tuple, evidence: str, **limits) -> Rule:
    arches = (arches,) if isinstance(arches, str) else arches
    return Rule(ExtendTile(*tile), evidence, arches, max_head_dim=max_head_dim, **limits)


TABLES: dict[str, tuple[Rule, ...]] = {
    "g4lab": (
        _ours("sm_90", 512, (16, 32, 4, 3), _FLIGHT, max_rows=16),
        _ours("sm_90", 256, (32, 32, 4, 3), _FLIGHT, max_rows=32),
        _ours("sm_90", 512, (32, 32, 8, 3), _FLIGHT, max_rows=32),
        _ours("sm_90", 128, (128, 64, 8, 3), _WGMMA, min_total_rows=ENOUGH_ROWS),
        _ours("sm_90", 256, (128, 64, 8, 2), _WGMMA, min_total_rows=ENOUGH_ROWS),
        _ours("sm_90", 256, (64, 64, 8, 3), _FEW),
        _ours("sm_90", 512, (64, 32, 8, 2), _WIDE),
        _ours("sm_100", 512, (16, 32, 4, 3), _FLIGHT, max_rows=16),
        _ours("sm_100", 512, (32, 32, 8, 3), _FLIGHT, max_rows=32),
        _ours("sm_100", 256, (64, 64, 8, 2), _FITS),
        _ours("sm_100", 512, (64, 32, 8, 2), _FITS),
        _ours("sm_80", 512, (16, 32, 4, 3), _FLIGHT, max_rows=16),
        _ours("sm_80", 256, (32, 32, 4, 3), _FLIGHT, max_rows=32),
        _ours("sm_80", 256, (64, 32, 8, 3), _FITS),
        _ours("sm_80", 512, (32, 32, 8, 3), _FITS),
        _ours(SMALL_SHARED, 256, (16, 32, 4, 3), _FLIGHT, max_rows=16),
        _ours(SMALL_SHARED, 256, (32, 32, 4, 3), _FLIGHT, max_rows=32),
        _ours(SMALL_SHARED, 256, (64, 32, 8, 2), _FITS),
        _ours(SMALL_SHARED, 512, (32, 16, 8, 2), _FITS),
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
    """Into how many parts the keys of each tile are split: as many as the GPU's processors hold at once.

    programs: tiles times KV heads. max_keys: an upper bound of the keys that one tile sees. A processor is taken to
    hold 8 warps of such programs; a part has at least LEAST_BLOCKS blocks of keys, or combining the parts would cost
    more than it saves. By reasoning, not timed.
    """
    held = processors * max(1, 8 // tile.num_warps)
    return max(1, min(held // max(1, programs), max_keys // (LEAST_BLOCKS * tile.block_n), MOST_SPLITS))
