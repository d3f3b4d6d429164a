"""The KV pools of a server, as its dumps tell."""

from pathlib import Path
from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)


@app.callback()
def _kv() -> None:
    """The KV pools of a server, as its dumps tell."""


@app.command()
def inspect(
    dump: Annotated[Path, typer.Argument(help="The .npz file that the patch kv_sentinel named when it raised.")],
    most: Annotated[int, typer.Option(help="Slots shown of each request.", min=1)] = 3,
) -> None:
    """Say which request would have read which wrong slot, at which position, and which slot is the right one.

    A server writes such a file when the patch kv_sentinel finds an index that attention must not read. It goes to
    $G4LAB_KV_DUMP_DIR, or to the folder for temporary files.

    Example:

    - `g4lab kv inspect /tmp/kv-4711.npz`
    """
    from g4lab.kvpool.dump import explain, load

    print("\n".join(explain(load(dump), most)))
