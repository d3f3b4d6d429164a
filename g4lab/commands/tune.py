"""What the compiler makes of the kernels, for GPUs that need not be here, and the tiles that follow from it."""

from pathlib import Path
from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)


@app.command()
def facts(
    kernel: Annotated[
        list[str] | None, typer.Option(help="Only this kernel; may be given again.", show_default="all, and SGLang's")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="Architecture; may be given again.", show_default="sm_90 and sm_100")
    ] = None,
) -> None:
    """Registers, spills, shared memory, blocks per SM and instructions of every kernel, compiled ahead of time.

    They tell the direction (what spills, what fits), not a speed. Compiling takes about a second each, once.

    Examples:

    - `g4lab tune facts`
    - `g4lab tune facts --kernel qkv_norm --kernel sglang_qkv_norm --arch sm_90`
    """
    import sys

    from rich.console import Console

    from g4lab.commands._progress import bar
    from g4lab.commands._table import frame_table
    from g4lab.tuning.table import ARCHES, compile_table

    with bar("compiling") as advance:
        table = compile_table(kernel, arch or ARCHES, progress=advance)
    Console(width=None if sys.stdout.isatty() else 200).print(frame_table(table))
    spilling = table[table.spill_stores + table.spill_loads > 0]
    print(f"{len(table) - len(spilling)} of {len(table)} without spills", end="")
    print("; spilling: " + ", ".join(spilling.kernel + " " + spilling.choices) if len(spilling) else "")


Arch = Annotated[str, typer.Option(help="Architecture: sm_80, sm_90, sm_100 or sm_120.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shapes", help="Only this shape; may be given again.", show_default="all of them"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Time nothing, though there is a GPU.")]
Out = Annotated[
    Path | None,
    typer.Option(help="The table; timings go beside it.", show_default="data/tiles/ARCH/KERNEL.json for all shapes"),
]


@app.command("extend_attention")
def ours(arch: Arch = "sm_90", shapes: Shapes = None, dry_run: DryRun = False, out: Out = None) -> None:
    """Tiles for g4lab's extend attention: enumerate, prune by compile facts, rank, and with a GPU time what is left.

    Without a GPU the table says what compile facts and a simple model say. Compile facts are cached and timings kept as
    they come, so a run that was killed goes on where it was.

    Examples:

    - `g4lab tune extend_attention --arch sm_90`
    - `g4lab tune extend_attention --shapes "verify chat" --shapes prefill-long`
    """
    _tune("extend_attention", arch, shapes, dry_run, out)


@app.command("sglang_extend_attention")
def sglangs(arch: Arch = "sm_90", shapes: Shapes = None, dry_run: DryRun = False, out: Out = None) -> None:
    """The same for SGLang's kernel, whose block_m counts the tokens of one query head.

    Example:

    - `g4lab tune sglang_extend_attention --arch sm_90 --dry-run`
    """
    _tune("sglang_extend_attention", arch, shapes, dry_run, out)


def _tune(kernel: str, arch: str, shapes: list[str] | None, dry_run: bool, out: Path | None) -> None:
    from g4lab import env
    from g4lab.commands._progress import bar
    from g4lab.tuning import tile_report, tune
    from g4lab.tuning.extend_shapes import select

    chosen = select(shapes)
    table = out or env.data_dir() / "tiles" / arch / f"{kernel}.json"
    timer, why_not = _timer(kernel, arch, dry_run)
    with bar("compiling") as advance:
        verdicts = tune.survey(kernel, arch, chosen, progress=advance)
    with bar("timing") as advance:
        verdicts = tune.time_survivors(kernel, arch, verdicts, timer, table.with_suffix(".timings.jsonl"), advance)
    _show(tile_report.pruning(verdicts), tile_report.ranking(verdicts))
    print("\n".join(tile_report.words(verdicts)))
    if why_not:
        print(why_not)
    if shapes and not out:
        print("no table written: the one in data/ has all shapes (--out FILE writes one of these alone)")
        return
    env.atomic_write(table, tune.table(kernel, arch, verdicts))
    print(f"table in {table}")


@app.command()
def moe(
    arch: Arch = "sm_90",
    model: Annotated[str, typer.Option(help="A model with experts.")] = "26b-a4b",
    tp: Annotated[str, typer.Option(help="Ranks that share each expert, with commas.")] = "1,2,4",
    routing: Annotated[str, typer.Option(help="uniform, zipf, zipf:S or recorded:FILE.")] = "uniform",
    kernel: Annotated[
        str, typer.Option(help="sglang_fused_moe, which reads files, or fused_moe.")
    ] = "sglang_fused_moe",
    dry_run: DryRun = False,
    out: Out = None,
    files: Annotated[
        Path | None,
        typer.Option(help="Where timed configs go, laid out for SGLANG_MOE_CONFIG_DIR.", show_default="with g4lab"),
    ] = None,
) -> None:
    """Tiles for both products of the expert layer, 1 to 16384 tokens, with one block_m for both, and SGLang's files.

    Config files are written from timings alone, so only with a GPU and for it; without one the table says what compile
    facts and a simple model say. Also reports what SGLang's lookup of the nearest size loses between sizes. The first
    run compiles for some minutes; facts are cached.

    Examples:

    - `g4lab tune moe --model 26b-a4b --tp 1,2,4 --arch sm_90 --dry-run`
    - `g4lab tune moe --tp 1 --routing zipf:0.5 --out zipf.json`
    """
    from g4lab import env
    from g4lab.commands._progress import bar
    from g4lab.errors import bad
    from g4lab.tuning import moe_report, moe_tune
    from g4lab.tuning.moe_shapes import OFF_KEY

    ranks = _ranks(tp)
    shapes, between = (moe_tune.shapes(model, ranks, routing, sizes) for sizes in (moe_tune.KEYS, OFF_KEY))
    usual = (model, ranks, routing) == ("26b-a4b", [1, 2, 4], "uniform")
    table = out or (env.data_dir() / "tiles" / arch / f"{kernel}.json" if usual else None)
    timer, why_not = _timer(kernel, arch, dry_run, "moe_tile_timing")
    if timer and table is None:
        raise bad("out", None, "a file: timings go beside it, and the table in data/ is for the defaults alone")
    with bar("compiling") as advance:
        compiled = moe_tune.compile_tiles(kernel, arch, [*shapes, *between], progress=advance)
    tuned, between = moe_tune.survey(compiled, shapes), moe_tune.survey(compiled, between)
    if table:
        timings = table.with_suffix(".timings.jsonl")
        with bar("timing") as advance:
            tuned = moe_tune.time_survivors(compiled, tuned, timer, timings, progress=advance)
        with bar("timing between") as advance:
            between = moe_tune.time_survivors(compiled, between, timer, timings, keyed=tuned, progress=advance)
    losses = moe_report.off_key(compiled, tuned, between)
    _show(moe_report.pruning(tuned), moe_report.ranking(tuned), losses)
    print("\n".join(moe_report.words(tuned)))
    if why_not:
        print(why_not + "; no config files written, which are made from timings alone")
    elif kernel == moe_tune.SGLANG:
        print("config files: " + ", ".join(map(str, moe_tune.write_files(compiled, tuned, files))))
    if not table:
        print("no table written: the one in data/ is for the defaults (--out FILE writes another)")
        return
    env.atomic_write(table, moe_tune.table(compiled, tuned, losses.to_dict("records")))
    print(f"table in {table}")


def _ranks(text: str) -> list[int]:
    from g4lab.errors import bad

    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise bad("tp", text, "numbers of ranks with commas between: 1,2,4")
    return [int(part) for part in parts]


def _show(*frames) -> None:
    import sys

    from rich.console import Console

    from g4lab.commands._table import frame_table

    for frame in frames:
        Console(width=None if sys.stdout.isatty() else 200).print(frame_table(frame))


def _timer(kernel: str, arch: str, dry_run: bool, module: str = "tile_timing"):
    """The timer of this machine's GPU, or None and the reason why nothing is timed."""
    import importlib

    from g4lab import env
    from g4lab.errors import Unavailable, bad

    if dry_run:
        return None, "nothing timed: --dry-run"
    try:
        found = importlib.import_module(f"g4lab.bench.{module}").timer(kernel)
    except Unavailable as error:
        return None, f"nothing timed: {error}"
    here = env.machine()["gpus"][0]["sm"]
    if here != arch:
        raise bad("arch", arch, f"{here}, which this GPU is, or --dry-run")
    return found, ""
