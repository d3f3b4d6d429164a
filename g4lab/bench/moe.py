"""The benchmark of the expert layer: providers as data, timed against SGLang's with the config files it comes with.

TFLOP/s count the FLOPs of the drawn pairs and GB/s the weights of the experts that they touch, once, for every
provider: one that pads or reads more shows as slower, not as busier. The shares are of this GPU's matmul rate and copy
bandwidth, measured in the same run; floor_us is the layer's least time at them (g4lab.bench.moe_floors). Back to back
or alone, every call reads its weights from memory (g4lab.bench.moe_cases), as in an engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from g4lab.bench import ceilings, liger_peers, moe_cases, moe_peers, stats, suite, timing
from g4lab.bench.ceilings import Ceilings
from g4lab.bench.floors import copying, launch_empty
from g4lab.bench.moe_cases import LAYERS, inputs
from g4lab.bench.moe_floors import LAYER, floors, weight_bytes
from g4lab.bench.timing import Provider, Timed
from g4lab.errors import bad
from g4lab.kernels.fused_moe import fused_moe, pick_config
from g4lab.tuning import moe_configs, moe_shapes, sglang_moe
from g4lab.tuning.moe_shapes import SIZES, MoEShape

BASELINE = "SGLang, upstream's files"
FILES = "SGLang, g4lab's files"
OURS = "g4lab"
COPY = "copy of as many bytes"
FLOORS = (suite.EMPTY, COPY)
SECONDS = 8.0  # of samples for each shape
KEYS = suite.keys(MoEShape)


@dataclass(frozen=True)
class _WithFiles(Provider):
    """A provider that needs config files: `files`, a value for SGLANG_MOE_CONFIG_DIR."""

    files: Path | None = None

    def missing(self) -> str:
        none = "" if self.files else "g4lab ships no config files: none are measured (--configs FOLDER: time others)"
        return super().missing() or none


def ours(shape: MoEShape, device: str = "cuda", tokens: Sequence[int] | None = None):
    """g4lab's layer with the config it picks for the shape, on these tokens of it (default: all)."""
    x, turns = inputs(shape, device), inputs(shape, device).turns()
    rows = (x.x, x.topk_weights, x.topk_ids)
    hidden, weights, ids = rows if tokens is None else (each[list(tokens)] for each in rows)
    config = pick_config(shape.tokens, shape.top_k, shape.num_experts)
    out = torch.empty_like(hidden)
    return lambda: fused_moe(hidden, *next(turns), weights, ids, config=config, out=out)


def empty(shape: MoEShape, device: str = "cuda"):
    """An empty launch."""
    tensor = inputs(shape, device).x
    return lambda: launch_empty(tensor)


def copy(shape: MoEShape, device: str = "cuda"):
    """Moves as many bytes as the touched experts' weights have, from and to buffers that take turns."""
    moved = int(weight_bytes(shape, moe_cases.load(shape)[0])[LAYER])
    turns = itertools.cycle([copying(moved, device) for _ in range(LAYERS)])
    return lambda: next(turns)()


def providers(files: Path | None = None) -> tuple[Provider, ...]:
    """All of them. files: a value for SGLANG_MOE_CONFIG_DIR, to time SGLang with; None: there are none."""
    return (
        Provider(BASELINE, moe_peers.sglang, "sglang"),
        Provider(suite.again(BASELINE), moe_peers.sglang, "sglang"),
        _WithFiles(FILES, partial(moe_peers.sglang, files=files), "sglang", files),
        Provider(OURS, ours),
        Provider("PyTorch grouped_mm", moe_peers.grouped_mm),
        Provider("PyTorch grouped_mm, Liger GEGLU", liger_peers.experts, liger_peers.PACKAGE),
        Provider("eager PyTorch, gathered weights", moe_peers.gathered),
        Provider("vLLM", moe_peers.vllm, "vllm"),
        Provider(suite.EMPTY, empty),
        Provider(COPY, copy),
    )


@dataclass(frozen=True)
class Choice:
    """What to prove and time: `choose` checks it."""

    shapes: tuple[MoEShape, ...]
    providers: tuple[Provider, ...]
    files: Path | None


def shipped() -> Path | None:
    """Where g4lab's config files are, measured ones (`g4lab tune moe` writes them there); None while there are none."""
    return moe_configs.SHIPPED if any(moe_configs.SHIPPED.glob("configs/triton_*/E=*.json")) else None


def choose(
    tokens: Sequence[int] | None = None, tp: Sequence[int] = (1,), without: Sequence[str] = (), *,
    routing: str = "uniform", files: Path | None = None,
) -> Choice:  # fmt: skip
    """26B-A4B's layer on one of `tp` ranks (its experts' width divided) with these numbers of tokens (None: SIZES).

    files: as for `providers`; None: those that g4lab ships.

    Raises:
        BadInput: a number of tokens below 1, a tp that does not divide the width, an unknown routing, a name in
            `without` that no provider has or that is the baseline's, files that SGLang would misread.
        Unavailable: a recorded routing without a file.
    """
    for each in tokens or ():
        if each < 1:
            raise bad("tokens", each, "1 or more")
    files = files or shipped()
    if files is not None:
        moe_configs.check_root(files)
    found = providers(files)
    names = [provider.name for provider in found if not provider.name.startswith(BASELINE)]
    for name in without:
        if name not in names:
            raise bad("without", name, "one of " + ", ".join(names))
    shapes = (shape for ranks in tp for shape in moe_shapes.of(tp=ranks, routing=routing, sizes=tokens or SIZES))
    return Choice(tuple(shapes), tuple(each for each in found if each.name not in without), files)


def measure(
    chosen: Choice, *, rounds: int = 200, seconds: float = SECONDS,
    keep: Callable[[pd.DataFrame], None] | None = None, progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`suite.measure` of what was chosen, and for each provider that ran also what `rates` adds. Ceilings are measured
    first. seconds: of one shape's samples, about; compiling comes on top.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        G4LabError: a provider broke the CUDA context.
    """
    timing.require_gpu()
    more = rates(ceilings.measure(), chosen.files)
    return suite.measure(
        chosen.shapes, lambda shape: chosen.providers, baseline=BASELINE, rounds=rounds, seconds=seconds, more=more,
        keep=keep, progress=progress,
    )  # fmt: skip


def config_of(name: str, shape: MoEShape, files: Path | None = None) -> str:
    """Which tiles a provider runs a shape with, in a word; empty where that is its library's affair."""
    if name == OURS:
        return sglang_moe.described_config(pick_config(shape.tokens, shape.top_k, shape.num_experts))
    if not name.startswith((BASELINE, FILES)):
        return ""
    folder = files if name == FILES else None
    sizes = (shape.hidden, shape.width, shape.num_experts, shape.top_k)
    found = sglang_moe.described(*sglang_moe.choice(shape.tokens, *sizes, folder))
    known = sglang_moe.has_files(shape.num_experts, shape.width, folder)
    return found if known else f"{found} (no file: SGLang's default)"


def rates(most: Ceilings, files: Path | None = None) -> Callable[[MoEShape, str, str, dict[str, Timed]], dict]:
    """What a row adds: touched and busiest (experts with a pair, pairs of the one with most), floor_us and binds, the
    ceilings; for all but the empty launch gbps (10^9 bytes of touched weights/s), bandwidth_share and copy_share (of
    what a copy of as many bytes reached beside it); for expert layers tflops, matrix_share and config."""

    def more(shape: MoEShape, name: str, reading: str, timed: dict[str, Timed]) -> dict:
        touched, busiest = moe_cases.load(shape)
        us = {each: stats.quantiles(t.samples[reading])["p50"] for each, t in timed.items() if not t.reason}
        floor = floors(shape, most, touched).iloc[-1]
        row = {
            "touched": touched, "busiest": busiest, "floor_us": floor.floor_us, "binds": floor.binds,
            "ceiling_tflops": most.matmul_tflops, "ceiling_gbps": most.copy_gbps,
        }  # fmt: skip
        if name == suite.EMPTY:
            return row
        gbps = floor.weights / us[name] / 1e3
        row |= {"gbps": gbps, "bandwidth_share": gbps / most.copy_gbps}
        row |= {"copy_share": us[COPY] / us[name]} if COPY in us else {}
        if name != COPY:
            tflops = shape.flops / us[name] / 1e6
            row |= {"tflops": tflops, "matrix_share": tflops / most.matmul_tflops}
            row["config"] = config_of(name, shape, files)
        return row

    return more


def tables(times: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each tp and reading a title and a table of median µs, a row per number of tokens and a column per provider,
    and one of what ours and SGLang's with g4lab's files reach; then what could not run, and why."""
    ran = times[times.reason == ""]
    for (tp, routing, reading), rows in ran.groupby(["tp", "routing", "reading"], sort=False):
        title = f"tp {tp}, {routing} routing, {reading} L2"
        yield (
            f"{title}: median µs",
            rows.pivot_table(index="tokens", columns="provider", values="p50_us", sort=False).reset_index(),
        )
        for name in (OURS, FILES):
            mine = ["tokens", "touched", "p20_us", "p50_us", "p80_us", "n", "speedup", "speedup_low", "speedup_high",
                    "aa_low", "aa_high", "tflops", "gbps", "bandwidth_share", "floor_us", "config"]  # fmt: skip
            if len(found := rows[rows.provider == name]):
                yield f"{title}: {name}", found.reindex(columns=mine)
    absent = times[times.reason != ""].groupby(["provider", "reason"], sort=False)
    said = absent["tokens"].agg(lambda found: ", ".join(map(str, dict.fromkeys(found))))
    yield "not timed", said.reset_index()


def availability(files: Path | None = None) -> pd.DataFrame:
    """`suite.availability` of this suite's providers."""
    return suite.availability(providers(files or shipped()))
