"""The tuner of extend attention: enumerate tiles, prune by compile facts, rank the rest, and with a GPU time them.

Everything but the timing runs on any machine. Compile facts are cached and timings kept in a file that only grows, so a
run that was killed goes on where it was, and the same timings give the same table, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from g4lab import env
from g4lab.errors import Unavailable
from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.tuning import facts, tile_model, tile_rules, tile_space
from g4lab.tuning.chips import Chip, chip
from g4lab.tuning.extend_shapes import ExtendShape
from g4lab.tuning.tile_rules import WORDS, Candidate
from g4lab.tuning.tile_space import Tunable, tunable

KEEP = 8  # of the ranked tiles of a shape, to time
Progress = Callable[[int, int], None]
# (shape, tiles) -> {"aa_low", "aa_high", "times": {str(tile): {"p20_us", "p50_us", "p80_us", "n"} or {"reason"}}}
Timer = Callable[[ExtendShape, Sequence[ExtendTile]], Mapping]


@dataclass(frozen=True)
class Verdict:
    """What became of the tiles on one shape.

    Attributes:
        removed: rule (a key of WORDS) by tile.
        ranked: (candidate, estimated microseconds) of the others, the fastest by the model first.
        timing: what the timer said about the first KEEP of them; empty where nothing was timed.
    """

    shape: ExtendShape
    removed: Mapping[ExtendTile, str]
    ranked: Sequence[tuple[Candidate, float]]
    timing: Mapping = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles each rule removed, in the rules' order."""
        removed = Counter(self.removed.values())
        return {rule: removed[rule] for rule in WORDS}

    @property
    def to_time(self) -> list[ExtendTile]:
        """The tiles that are worth a GPU's time."""
        return [each.tile for each, _ in self.ranked[:KEEP]]

    @property
    def best(self) -> ExtendTile | None:
        """The fastest as timed, else as ranked; None where no tile is left."""
        times = {name: each["p50_us"] for name, each in self.timing.get("times", {}).items() if "p50_us" in each}
        return min(self.to_time, key=lambda tile: times.get(str(tile), float("inf")), default=None)


def survey(
    kernel: str, arch: str, shapes: Sequence[ExtendShape], *, tiles: Sequence[ExtendTile] | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:  # fmt: skip
    """Compiles what has to be compiled (cached) and applies the rules and the model: a verdict for every shape.

    tiles: those to look at, default `tile_space.tiles`.

    Raises:
        BadInput: an unknown kernel, or an architecture that the model knows no chip of.
    """
    what, which = tunable(kernel), chip(arch)
    tiles = tile_space.tiles(arch) if tiles is None else tiles
    requests = {}  # by their text: shapes of the same layer have the same
    for shape in shapes:
        for tile in tiles:
            if tile_rules.before_compiling(arch, shape, tile) is None:
                request = what.request(arch, shape, tile)
                requests[repr(request)] = request
    compiled = dict(zip(requests, facts.compile_each(list(requests.values()), progress), strict=True))
    return [_judge(what, which, arch, shape, tiles, compiled) for shape in shapes]


def _judge(what: Tunable, which: Chip, arch: str, shape: ExtendShape, tiles, compiled) -> Verdict:
    removed, left = {}, []
    for tile in tiles:
        if rule := tile_rules.before_compiling(arch, shape, tile):
            removed[tile] = rule
            continue
        found = compiled[repr(what.request(arch, shape, tile))]
        if isinstance(found, Unavailable):
            removed[tile] = "compile"
        elif found.blocks_per_sm == 0:
            removed[tile] = "shared"
        elif not tile_rules.spills_little(which, shape, Candidate(tile, found)):
            removed[tile] = "spills"
        else:
            left.append(Candidate(tile, found))
    left = tile_rules.merge_same(left)
    removed |= {tile: "same code" for each in left for tile in each.same}
    losers = [each for each in left if tile_rules.dominated(each, left)]
    removed |= {each.tile: "dominated" for each in losers}
    left = [each for each in left if each not in losers]
    losers = tile_rules.too_much_work(what, which, shape, left)
    removed |= {each.tile: "work" for each in losers}
    left = [each for each in left if each not in losers]
    cycles = {each.tile: tile_model.estimate(what, which, shape, each.tile, each.facts) for each in left}
    left.sort(key=lambda each: (cycles[each.tile], str(each.tile)))
    return Verdict(shape, removed, [(each, which.us(cycles[each.tile][0])) for each in left])


def time_survivors(
    kernel: str, arch: str, verdicts: Sequence[Verdict], timer: Timer | None, state: Path,
    progress: Progress | None = None,
) -> list[Verdict]:  # fmt: skip
    """The verdicts with their timings: those that `state` holds for this very code, and with a timer those it lacks.

    state: JSON lines, one a shape, appended as they come; other lines in it stay and are ignored.
    """
    known = load_timings(state)
    found = []
    for done, verdict in enumerate(verdicts):
        key = _state_key(kernel, arch, verdict)
        timing = known.get(json.dumps(key))
        if timing is None and timer and verdict.to_time:
            timing = dict(timer(verdict.shape, verdict.to_time)) | {"machine": env.machine_name()}
            append_timing(state, {"key": key, "timing": timing})
        found.append(Verdict(verdict.shape, verdict.removed, verdict.ranked, timing or {}))
        if progress:
            progress(done + 1, len(verdicts))
    return found


def _state_key(kernel: str, arch: str, verdict: Verdict) -> dict:
    key = {"kernel": kernel, "arch": arch, "code": facts.code_of(kernel), "shape": asdict(verdict.shape)}
    return key | {"tiles": [str(tile) for tile in verdict.to_time]}


def load_timings(state: Path) -> dict[str, dict]:
    """What a file of timings holds: the timing by its key, as JSON text. Empty where there is no file."""
    found = {}
    for line in state.read_text().splitlines() if state.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # the line that a killed run was writing
            continue
        found[json.dumps(entry["key"])] = entry["timing"]
    return found


def append_timing(state: Path, entry: dict) -> None:
    """Adds {"key", "timing"} to a file of timings, on disk when this returns."""
    state.parent.mkdir(parents=True, exist_ok=True)
    torn = state.exists() and not state.read_bytes().endswith(b"\n")
    with state.open("a") as file:
        file.write("\n" * torn + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def table(kernel: str, arch: str, verdicts: Sequence[Verdict]) -> str:
    """The table of tiles as JSON text: for every shape the tile, what says so, and all that was weighed against it."""
    versions = env.versions()
    head = {
        "kernel": kernel,
        "arch": arch,
        "model": f"{chip(arch).name}: {tile_model.LIMITS}",
        "code": facts.code_of(kernel),
        "versions": {name: versions[name] for name in ("triton", "sglang")},
        "rules": WORDS,
    }
    return json.dumps(head | {"shapes": [_row(each) for each in verdicts]}, indent=1) + "\n"


def _row(verdict: Verdict) -> dict:
    timed = verdict.timing.get("times", {})
    return {
        "shape": asdict(verdict.shape),
        "tile": verdict.best and asdict(verdict.best),
        "basis": f"timed on {verdict.timing['machine']}" if timed else "compile facts and a model, not timed",
        "removed": {"enumerated": len(verdict.removed) + len(verdict.ranked), **verdict.counts},
        "ranked": [_weighed(each, us) | timed.get(str(each.tile), {}) for each, us in verdict.ranked],
        "aa": [verdict.timing.get("aa_low"), verdict.timing.get("aa_high")],
    }


def _weighed(each: Candidate, us: float) -> dict:
    found = {"tile": str(each.tile), "same": list(map(str, each.same)), "model_us": round(us, 1)}
    names = ("registers", "shared", "blocks_per_sm", "mma", "serialized", "loop_spills", "pipelined")
    return found | {name: getattr(each.facts, name) for name in names}
