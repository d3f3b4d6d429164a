"""`g4lab bundle`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from g4lab.errors import bad

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def command(
    out: Annotated[Path, typer.Argument(help="Folder for the parcels; an earlier bundle there is replaced.")],
    python: Annotated[str, typer.Option(help="The node's Python.")] = "3.12",
    torch: Annotated[str, typer.Option(help="The node's torch, which does not travel.")] = "2.11",
    limit: Annotated[str, typer.Option(help="Largest size of a parcel, as 55MiB or 60MB.")] = "55MiB",
    node: Annotated[
        Path | None,
        typer.Option(help="TOML file of what the node brings.", show_default="bundle/node-cuda13.toml in the package"),
    ] = None,
) -> None:
    """Wheels and files for a GPU node without a network, in parcels, with install.sh and a manifest of hashes.

    It carries g4lab, what the node lacks and a slim SGLang. On the node: `PYTHON=python3 sh OUT/install.sh DEST`.

    Examples:

    - `g4lab bundle bundle/`
    - `g4lab bundle --python 3.12 --torch 2.11 --limit 20MiB --node my-node.toml bundle`
    """
    from rich.console import Console
    from rich.table import Table

    from g4lab.bundle import make

    console = Console(stderr=True)
    content = make(out, python, torch, _bytes(limit), node, lambda line: console.print(line, highlight=False))
    table = Table("parcel", "MiB", "files", "sha256")
    for name, parcel in content["parcels"].items():
        files = [file for file in content["files"].values() if name in file["parcels"]]
        table.add_row(name, f"{parcel['size'] / 2**20:.1f}", str(len(files)), parcel["sha256"][:16])
    Console().print(table)
    print(f"{out}: {len(content['packages'])} packages; install with `sh {out}/install.sh DEST`")


def _bytes(limit: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)", limit.strip().upper())
    if not found:
        raise bad("limit", limit, "a number with B, kB, MB, GB, KiB, MiB or GiB")
    return int(float(found[1]) * _UNITS[found[2]])
