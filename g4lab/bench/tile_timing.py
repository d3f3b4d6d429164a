"""Times the tiles that the tuner left, on this GPU: interleaved, with the L2 cleared, and the A/A interval beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from g4lab.bench import extend, stats, suite, timing
from g4lab.bench.timing import Provider, Timed
from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.tuning.extend_shapes import ExtendShape

READING = "cold"  # the L2 is cleared: a layer's keys are not in it when its turn comes
SECONDS = 10.0  # of samples for each shape
BUILDS = {
    "extend_attention": lambda shape, tile: extend.ours(shape, tile=tile),
    "sglang_extend_attention": extend.sglang_with,
}


def timer(kernel: str) -> Callable[[ExtendShape, Sequence[ExtendTile]], dict]:
    """A `g4lab.tuning.tune.Timer` for a tunable kernel.

    Raises:
        Unavailable: no GPU, or an interpreted process.
    """
    timing.require_gpu()
    build = BUILDS[kernel]

    def time_tiles(shape: ExtendShape, tiles: Sequence[ExtendTile]) -> dict:
        providers = [Provider(str(tile), lambda shape, tile=tile: build(shape, tile)) for tile in tiles]
        providers.append(Provider(suite.again(providers[0].name), providers[0].build))
        return summary(providers[0].name, timing.time_providers(providers, shape, seconds=SECONDS))

    return time_tiles


def summary(twice: str, timed: dict[str, Timed]) -> dict:
    """What the tuner keeps of the samples: quantiles in microseconds by tile, or the reason that there are none, and
    the A/A interval of `twice`, the tile that was timed twice."""
    again = suite.again(twice)
    pair = [timed[twice], timed[again]]
    found = {"times": {name: _quantiles(each) for name, each in timed.items() if name != again}}
    if not any(each.reason for each in pair):
        same = stats.median_ratio(*(each.samples[READING] for each in pair))
        found |= {"aa_low": round(same.low, 4), "aa_high": round(same.high, 4)}
    return found


def _quantiles(timed: Timed) -> dict:
    if timed.reason:
        return {"reason": timed.reason}
    quantiles = stats.quantiles(timed.samples[READING])
    return {"n": quantiles.pop("n"), **{f"{name}_us": round(value, 3) for name, value in quantiles.items()}}
