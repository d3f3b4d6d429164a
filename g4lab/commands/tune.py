"""What the compiler makes of the kernels, for GPUs that need not be here."""

from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)


@app.callback()
def _tune() -> None:
    pass  # keeps `facts` a command of its own while it is the only one


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
