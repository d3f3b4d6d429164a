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


def _show(*frames) -> None:
    import sys

    from rich.console import Console

    from g4lab.commands._table import frame_table

    for frame in frames:
        Console(width=None if sys.stdout.isatty() else 200).print(frame_table(frame))


def _timer(kernel: str, arch: str, dry_run: bool):
    """The timer of this machine's GPU, or None and the reason why nothing is timed."""
    from g4lab import env
    from g4lab.errors import Unavailable, bad

    if dry_run:
        return None, "nothing timed: --dry-run"
    try:
        from g4lab.bench.tile_timing import timer

        found = timer(kernel)
    except Unavailable as error:
        return None, f"nothing timed: {error}"
    here = env.machine()["gpus"][0]["sm"]
    if here != arch:
        raise bad("arch", arch, f"{here}, which this GPU is, or --dry-run")
    return found, ""
