"""The tuner of the expert layer: enumerate tiles, prune by compile facts, rank the rest, and with a GPU time them.

Both products get the tile that is best for it among those with the block_m whose two best together are fastest.
Compile facts are cached and timings kept in a file that only grows, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.kernels.moe_tiles import MoEConfig, MoETile
from g4lab.tuning import facts, moe_configs, moe_model, tile_model, tile_rules, tune
from g4lab.tuning.chips import Chip, chip
from g4lab.tuning.moe_keys import short
from g4lab.tuning.moe_shapes import SIZES, MoEShape, described, of
from g4lab.tuning.moe_space import (
    PRODUCTS,
    WORDS,
    Tunable,
    before_compiling,
    grouped,
    mostly_empty,
    tiles,
    too_much,
    tunable,
)
from g4lab.tuning.tile_rules import SPILL_SHARE, Candidate

KEYS = (*SIZES, 16384)  # numbers of tokens that a file has
SGLANG = "sglang_fused_moe"
BLOCKS, KEEP = 2, 3  # block_m's that are timed for a shape, and tiles of each for one product
GROUPS = (1, 16)  # group_m's, of which the model knows nothing
# (shape, product, tiles) -> as `tune.Timer`, the times by `short(tile)`
Timer = Callable[[MoEShape, str, Sequence[MoETile]], Mapping]


@dataclass(frozen=True)
class Compiled:
    """Compile facts of every tile that was worth compiling, and what the model makes of them."""

    what: Tunable
    arch: str
    chip: Chip
    found: Mapping[tuple, facts.CompileFacts | Unavailable]

    def of(self, shape: MoEShape, product: str, tile: MoETile) -> facts.CompileFacts | Unavailable:
        """The facts of the code that the shape gets with the tile, whatever its group_m."""
        return self.found[self.what.alike(shape, product, tile)]

    def us(self, shape: MoEShape, product: str, tile: MoETile) -> float:
        """Microseconds by the model, for a tile that compiles."""
        found = self.of(shape, product, tile)
        return self.chip.us(moe_model.estimate(self.what, self.chip, shape, product, tile, found)[0])

    def config_us(self, shape: MoEShape, config: MoEConfig) -> float:
        """Of both products."""
        return sum(self.us(shape, product, getattr(config, product)) for product in PRODUCTS)


@dataclass(frozen=True)
class Verdict:
    """What became of the tiles for one product of a shape.

    removed: rule (a key of WORDS) by tile. ranked: (candidate, microseconds by the model), the fastest first.
    """

    product: str
    removed: Mapping[MoETile, str]
    ranked: Sequence[tuple[Candidate, float]]

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles each rule removed, in the rules' order."""
        removed = Counter(self.removed.values())
        return {rule: removed[rule] for rule in WORDS}

    def best(self, block_m: int, times: Mapping[str, float] | None = None) -> tuple[MoETile, float] | None:
        """The fastest with this block_m, as timed where times (us by tile) are given, else as ranked; and its time."""
        if times:
            timed = [(tile, times[short(tile)]) for tile in self.to_time([block_m]) if short(tile) in times]
            return min(timed, key=lambda each: each[1], default=None)
        return next(((each.tile, us) for each, us in self.ranked if each.tile.block_m == block_m), None)

    def to_time(self, block_ms: Sequence[int]) -> list[MoETile]:
        """The tiles with these block_m's that are worth a GPU's time, each with all of GROUPS."""
        found = []
        for block_m in block_ms:
            first = [each.tile for each, _ in self.ranked if each.tile.block_m == block_m][:KEEP]
            found += [replace(tile, group_m=group) for tile in first for group in GROUPS]
        return found


@dataclass(frozen=True)
class Tuned:
    """Both verdicts on a shape, and the timing of both products; empty where nothing was timed."""

    shape: MoEShape
    verdicts: Mapping[str, Verdict]
    timing: Mapping[str, Mapping] = field(default_factory=dict)

    @property
    def block_ms(self) -> list[int]:
        """By the sum of the two products' best by the model, the fastest first."""
        return self._order({})

    def _order(self, times: Mapping) -> list[int]:
        sums = {}
        for block_m in sorted({each.tile.block_m for each, _ in self.verdicts[PRODUCTS[0]].ranked}):
            pair = [self.verdicts[product].best(block_m, times.get(product)) for product in PRODUCTS]
            if all(pair):
                sums[block_m] = sum(us for _, us in pair)
        return sorted(sums, key=sums.get)

    @property
    def times(self) -> dict[str, dict[str, float]]:
        """Median microseconds by product and tile; empty unless both products have some."""
        found = {
            product: {name: each["p50_us"] for name, each in timing["times"].items() if "p50_us" in each}
            for product, timing in self.timing.items()
        }
        return found if len(found) == len(PRODUCTS) and all(found.values()) else {}

    @property
    def config(self) -> MoEConfig | None:
        """The fastest pair with one block_m, as timed, else as ranked; None where a product has no tile left."""
        order = self._order(self.times)
        if not order:
            return None
        chosen = [self.verdicts[product].best(order[0], self.times.get(product))[0] for product in PRODUCTS]
        if not self.times:
            chosen = [grouped(tile, moe_model.load(self.shape, tile.block_m).reads) for tile in chosen]
        return MoEConfig(*chosen)

    @property
    def basis(self) -> str:
        """What says so."""
        if not self.times:
            return "compile facts and a model, not timed"
        return f"timed on {self.timing[PRODUCTS[0]]['machine']}"


def shapes(model: str, ranks: Sequence[int], routing: str, sizes: Sequence[int]) -> list[MoEShape]:
    """The expert layer of a model on each of these numbers of ranks. Raises as `moe_shapes.of`."""
    return [each for tp in ranks for each in of(model, tp, routing=routing, sizes=sizes)]


def compile_tiles(
    kernel: str, arch: str, shapes: Sequence[MoEShape], space: Sequence[MoETile] | None = None,
    progress: tune.Progress | None = None,
) -> Compiled:  # fmt: skip
    """Compiles (cached) what the shapes need of `space` (all tiles), once for shapes with the same masks.

    Raises:
        BadInput: an unknown kernel, or an architecture that the model knows no chip of.
    """
    what, which, requests = tunable(kernel), chip(arch), {}
    for shape in shapes:
        for product in PRODUCTS:
            for tile in space or tiles():
                if before_compiling(what, arch, product, tile, shape.dtype) is None:
                    requests.setdefault(what.alike(shape, product, tile), what.request(arch, shape, product, tile))
    found = facts.compile_each(list(requests.values()), progress)
    return Compiled(what, arch, which, dict(zip(requests, found, strict=True)))


def survey(compiled: Compiled, shapes: Sequence[MoEShape], space: Sequence[MoETile] | None = None) -> list[Tuned]:
    """The rules and the model, applied to each shape; `space` as it was compiled."""
    return [
        Tuned(shape, {product: _judge(compiled, shape, product, space or tiles()) for product in PRODUCTS})
        for shape in shapes
    ]


def _judge(compiled: Compiled, shape: MoEShape, product: str, space: Sequence[MoETile]) -> Verdict:
    what, which, removed, left = compiled.what, compiled.chip, {}, []
    pairs = shape.pairs / moe_model.load(shape, 16).touched
    for tile in space:
        if rule := before_compiling(what, compiled.arch, product, tile, shape.dtype):
            removed[tile] = rule
            continue
        if mostly_empty(tile, pairs):
            removed[tile] = "rows"
            continue
        found = compiled.of(shape, product, tile)
        if isinstance(found, Unavailable):
            removed[tile] = "compile"
        elif found.blocks_per_sm == 0:
            removed[tile] = "shared"
        elif not _spills_little(what, which, product, tile, found):
            removed[tile] = "spills"
        else:
            left.append(Candidate(tile, found))
    left = tile_rules.merge_same(left)
    removed |= {tile: "same code" for each in left for tile in each.same}
    bounds = [moe_model.bound(what, which, shape, product, each.tile, each.facts.mma) for each in left]
    losers = [each for each, out in zip(left, too_much(bounds), strict=True) if out]
    removed |= {each.tile: "work" for each in losers}
    left = [each for each in left if each not in losers]
    cycles = {each.tile: moe_model.estimate(what, which, shape, product, each.tile, each.facts) for each in left}
    left.sort(key=lambda each: (cycles[each.tile], short(each.tile)))
    return Verdict(product, removed, [(each, which.us(cycles[each.tile][0])) for each in left])


def _spills_little(what: Tunable, which: Chip, product: str, tile: MoETile, found: facts.CompileFacts) -> bool:
    matrix = moe_model.step_cycles(what, product, tile, which.flops[found.mma])
    return tile_model.spill_cycles(found) <= SPILL_SHARE * matrix


def time_survivors(
    compiled: Compiled, tuned: Sequence[Tuned], timer: Timer | None, state: Path, *, keyed: Sequence[Tuned] = (),
    progress: tune.Progress | None = None,
) -> list[Tuned]:  # fmt: skip
    """With their timings: those that `state` holds for this very code, and with a timer those that it lacks of this
    machine.

    state: JSON lines as `tune.append_timing` writes them. keyed: of a file's keys; each shape's nearest config among
    them is timed as well, for what the lookup loses.
    """
    known, found, kernel = tune.load_timings(state), [], compiled.what.kernel
    for done, each in enumerate(tuned):
        timing, other = {}, nearest_config(keyed, each.shape)
        for product in PRODUCTS:
            chosen = each.verdicts[product].to_time(each.block_ms[:BLOCKS])
            chosen += [getattr(other, product)] if other and getattr(other, product) not in chosen else []
            key = {"kernel": kernel, "arch": compiled.arch, "code": facts.code_of(kernel), "shape": asdict(each.shape)}
            key |= {"product": product, "tiles": [short(tile) for tile in chosen]}
            seen = known.get(json.dumps(key))
            if timer and chosen and (seen is None or seen["machine"] != env.machine_name()):
                seen = dict(timer(each.shape, product, chosen)) | {"machine": env.machine_name()}
                tune.append_timing(state, {"key": key, "timing": seen})
            if seen:
                timing[product] = seen
        found.append(replace(each, timing=timing))
        if progress:
            progress(done + 1, len(tuned))
    return found


def nearest_config(keyed: Sequence[Tuned], shape: MoEShape) -> MoEConfig | None:
    """What SGLang's lookup takes for a shape of a file made of these; None where there is none for its tp."""
    keys = {each.shape.tokens: each.config for each in keyed if each.shape.tp == shape.tp and each.config}
    return keys[moe_configs.nearest(keys, shape.tokens)] if keys else None


def write_files(compiled: Compiled, tuned: Sequence[Tuned], root: Path | None = None) -> list[Path]:
    """SGLang's config files, a pair for each tp, for the GPU of this machine, from timings made on it and nothing else.

    root: a value for SGLANG_MOE_CONFIG_DIR; default, the folder that the patch `moe_configs` reads.

    Raises:
        BadInput: a kernel that is not SGLang's, or a shape that was not timed on this machine.
    """
    if compiled.what.kernel != SGLANG:
        raise bad("kernel", compiled.what.kernel, f"{SGLANG}, whose files these are")
    for each in tuned:
        if not each.times or {timing["machine"] for timing in each.timing.values()} != {env.machine_name()}:
            raise bad(each.shape.name, each.basis, f"timings of both products on {env.machine_name()}")
    device, found = env.machine()["gpus"][0]["name"], []
    for tp in dict.fromkeys(each.shape.tp for each in tuned):
        mine = [each for each in tuned if each.shape.tp == tp]
        configs = {each.shape.tokens: each.config for each in mine}
        shape = mine[0].shape
        found += moe_configs.write(root or moe_configs.SHIPPED, shape.num_experts, shape.width, device, configs)
    return found


def table(compiled: Compiled, tuned: Sequence[Tuned], off_key: Sequence[Mapping] = ()) -> str:
    """The table as JSON text: for every shape the config, what says so, and the tiles that come first."""
    versions, shape = env.versions(), tuned[0].shape
    head = {
        "kernel": compiled.what.kernel,
        "arch": compiled.arch,
        "model": f"{compiled.chip.name}: {moe_model.LIMITS}",
        "routing": described(shape.routing, shape.num_experts),
        "code": facts.code_of(compiled.what.kernel),
        "versions": {name: versions[name] for name in ("triton", "sglang")},
        "rules": WORDS,
    }
    rows = {"shapes": [_row(each) for each in tuned], "off_key": list(off_key)}
    return json.dumps(head | rows, indent=1) + "\n"


def _row(tuned: Tuned) -> dict:
    return {
        "shape": asdict(tuned.shape),
        "config": tuned.config and asdict(tuned.config),
        "basis": tuned.basis,
        **{product: _product(verdict, tuned.timing.get(product)) for product, verdict in tuned.verdicts.items()},
    }


def _product(verdict: Verdict, timing: Mapping | None) -> dict:
    first = [{"tile": short(each.tile), "model_us": round(us, 1)} for each, us in verdict.ranked[: BLOCKS * KEEP]]
    counted = {"enumerated": len(verdict.removed) + len(verdict.ranked)}
    counted |= {rule: count for rule, count in verdict.counts.items() if count}
    return {"removed": counted, "ranked": first, **({"timing": timing} if timing else {})}
