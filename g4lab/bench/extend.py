"""The benchmark of extend attention: providers as data, timed against SGLang's own kernel with the tile it chooses.

TFLOP/s and GB/s count a shape's FLOPs and bytes (its visible pairs, and each tensor once) for every provider, so one
that computes or moves more shows as slower, not as busier. The shares are of this GPU's matmul rate and copy bandwidth,
measured in the same run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import pandas as pd
import torch

from g4lab.bench import ceilings, extend_peers, stats, suite, timing
from g4lab.bench.ceilings import Ceilings
from g4lab.bench.extend_cases import by_sequence, inputs
from g4lab.bench.timing import Provider, Timed
from g4lab.errors import Unavailable, bad
from g4lab.kernels.extend_attention import ExtendTile, arch_of, extend_attention, pick_tile
from g4lab.tuning import extend_shapes, sglang_extend
from g4lab.tuning.extend_shapes import ExtendShape

BASELINE = "SGLang, own tile"
OURS = "g4lab"
TILES = {"legacy": "SGLang, legacy tile", "seed": "SGLang, seed tile"}  # tables of pick_tile
SGLANG = (BASELINE, *TILES.values())
FLEX = "PyTorch FlexAttention"
SPLITS = (1, 2, 4, 8, 16, 32)
SECONDS = 8.0  # of samples for each shape


def columns(shape: ExtendShape) -> dict:
    """What names a shape in a table: its fields, the name as `shape`, since a record has a name of its own."""
    fields = asdict(shape)
    return {"shape": fields.pop("name"), **fields}


KEYS = [*columns(extend_shapes.SHAPES[0]), "provider", "reading"]


def launch_of(shape: ExtendShape) -> dict:
    """The arguments of `pick_tile` for a shape, but for architecture and table; as in an engine, which knows of the
    longest prefix only that it is no longer than all of them together."""
    return {
        "head_dim": shape.head_dim, "window": shape.window, "batch": shape.batch, "max_len_extend": shape.extend,
        "max_prefix": shape.batch * shape.prefix, "group": shape.group,
    }  # fmt: skip


def ours(shape: ExtendShape, device: str = "cuda", splits: int | None = None, tile: ExtendTile | None = None):
    """g4lab's kernel with as many splits and this tile, or those it chooses."""
    x = inputs(shape, device)
    out = torch.empty_like(x.q)

    def call():
        extend_attention(
            *x[:8], max_len_extend=shape.extend, sm_scale=x.sm_scale, window=shape.window, splits=splits, tile=tile,
            out=out,
        )  # fmt: skip
        return by_sequence(out, shape)

    return call


def sglang_tiled(shape: ExtendShape, table: str, device: str = "cuda", arch: str | None = None):
    """SGLang's kernel with the tile of a table. Raises Unavailable where that is the tile it chooses anyway."""
    launch = launch_of(shape) | {"arch": arch or arch_of(torch.device(device))}
    tile = pick_tile(table=table, **launch)
    if tile == pick_tile(table="sglang", **launch):
        raise Unavailable(f"the same tile as its own, {tile}")
    return sglang_with(shape, tile, device)


def sglang_with(shape: ExtendShape, tile: ExtendTile, device: str = "cuda"):
    """SGLang's kernel with this tile."""
    forward = extend_peers.sglang(shape, device)

    def call():
        with sglang_extend.tiled(tile):
            return forward()

    return call


def _with_splits(splits: int) -> Provider:
    return Provider(f"{OURS}, {splits} split{'s' * (splits > 1)}", lambda shape: ours(shape, splits=splits))


PROVIDERS = (
    Provider(BASELINE, extend_peers.sglang, "sglang"),
    Provider(suite.again(BASELINE), extend_peers.sglang, "sglang"),
    *(
        Provider(name, lambda shape, table=table: sglang_tiled(shape, table), "sglang")
        for table, name in TILES.items()
    ),
    Provider(OURS, ours),
    *map(_with_splits, SPLITS),
    Provider("SGLang verify_splitkv_fwd", extend_peers.sglang_verify, "sglang"),
    Provider("vLLM unified_attention", extend_peers.vllm, "vllm"),
    Provider("PyTorch SDPA", extend_peers.sdpa),
    Provider(FLEX, extend_peers.flex),
    Provider("FlashAttention-3", extend_peers.flash_3, "flash_attn_interface"),
    Provider("FlashAttention-3 of sgl_kernel", extend_peers.flash_3_sglang, "sgl_kernel"),
    Provider("FlashAttention-2", extend_peers.flash_2, "flash_attn"),
)  # fmt: skip
SPLIT_NAMES = tuple(_with_splits(splits).name for splits in SPLITS)


def programs_of(shape: ExtendShape, arch: str) -> int:
    """How many programs our kernel has for a shape while no key is split: tiles times KV heads."""
    tile = pick_tile(arch=arch, **launch_of(shape))
    return shape.batch * -(-shape.extend * shape.group // tile.block_m) * shape.num_kv_heads


def choose(shapes: Sequence[str] | None = None, without: Sequence[str] = ()) -> list[ExtendShape]:
    """The shapes of these names, None for all.

    Raises:
        BadInput: an unknown shape, or a name in `without` that no provider has or that is the baseline's.
    """
    names = [provider.name for provider in PROVIDERS if not provider.name.startswith(BASELINE)]
    for name in without:
        if name not in names:
            raise bad("without", name, "one of " + ", ".join(names))
    return extend_shapes.select(shapes)


def providers_of(shape: ExtendShape, without: Sequence[str] = ()) -> list[Provider]:
    """The providers of a shape on this GPU but those named in `without`; those that fix the number of splits only where
    there are fewer than two programs for each SM without."""
    device = torch.device("cuda", torch.cuda.current_device())
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    few = programs_of(shape, arch_of(device)) < 2 * processors
    left_out = {*without, *(() if few else SPLIT_NAMES)}
    return [provider for provider in PROVIDERS if provider.name not in left_out]


def measure(
    shapes: Sequence[str] | None = None, without: Sequence[str] = (), *, rounds: int = 200, seconds: float = SECONDS,
    keep: Callable[[pd.DataFrame], None] | None = None, progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`suite.measure` of every shape, and for each provider that ran also what `rates` adds.

    shapes: names of g4lab.tuning.extend_shapes, None for all. without: providers to leave out. seconds: of one shape's
    samples, about; compiling comes on top. Ceilings are measured first.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        BadInput: an unknown shape or provider.
        G4LabError: a provider broke the CUDA context.
    """
    chosen = choose(shapes, without)
    timing.require_gpu()
    most = ceilings.measure()
    return suite.measure(
        chosen, lambda shape: providers_of(shape, without), baseline=BASELINE, columns=columns, rounds=rounds,
        seconds=seconds, more=rates(most), keep=keep, progress=progress,
    )  # fmt: skip


def rates(most: Ceilings) -> Callable[[ExtendShape, str, str, dict[str, Timed]], dict]:
    """What a row adds: tflops (10^12 FLOPs/s), gbps (10^9 bytes/s), matrix_share and bandwidth_share of what `most`
    reaches, the ceilings themselves, best (the fastest of SGLang's tiles), over_best (how many times faster than that)
    and its interval."""

    def more(shape: ExtendShape, name: str, reading: str, timed: dict[str, Timed]) -> dict:
        us = {each: stats.quantiles(t.samples[reading])["p50"] for each, t in timed.items() if not t.reason}
        tflops, gbps = shape.flops / us[name] / 1e6, shape.bytes / us[name] / 1e3
        row = {
            "tflops": tflops, "gbps": gbps, "matrix_share": tflops / most.matmul_tflops,
            "bandwidth_share": gbps / most.copy_gbps, "ceiling_tflops": most.matmul_tflops,
            "ceiling_gbps": most.copy_gbps,
        }  # fmt: skip
        tiles = [each for each in SGLANG if each in us]
        if tiles:
            best = min(tiles, key=us.get)
            found = suite.ratio(timed, best, name, reading)
            row |= {"best": best, "over_best": found.ratio, "over_best_low": found.low, "over_best_high": found.high}
        return row

    return more


def tables(times: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each reading a title and a table of median µs, a row per shape and a column per provider, and one of what
    ours reaches; then what could not run, and why."""
    ran = times[times.reason == ""]
    for reading, rows in ran.groupby("reading", sort=False):
        yield (
            f"{reading} L2: median µs",
            rows.pivot_table(index="shape", columns="provider", values="p50_us", sort=False).reset_index(),
        )
        mine = ["shape", "p20_us", "p50_us", "p80_us", "n", "speedup", "speedup_low", "speedup_high", "aa_low",
                "aa_high", "best", "over_best", "tflops", "matrix_share", "gbps", "bandwidth_share"]  # fmt: skip
        yield f"{reading} L2: {OURS}", rows[rows.provider == OURS].reindex(columns=mine)
    absent = times[times.reason != ""].groupby(["provider", "reason"], sort=False)["shape"]
    yield "not timed", absent.agg(lambda shapes: ", ".join(dict.fromkeys(shapes))).reset_index()


def availability() -> pd.DataFrame:
    """`suite.availability` of this suite's providers."""
    return suite.availability(PROVIDERS)
