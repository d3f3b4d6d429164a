"""What the project claims, how each claim is decided, and README's tables of it."""

from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)


@app.command("list")
def list_claims(
    of: Annotated[str | None, typer.Option(help="Only claims whose pull request, room or id contains this.")] = None,
    state: Annotated[str | None, typer.Option(help="Only proven, refuted or not measured.")] = None,
) -> None:
    """One line for each claim and machine that decides it, with the command that reproduces it.

    Examples:

    - `g4lab claims list --of router`
    - `g4lab claims list --state "not measured"`
    """
    from typing import get_args

    from rich.console import Console

    from g4lab.claims.model import State
    from g4lab.claims.tables import claims_frame
    from g4lab.commands._table import frame_table
    from g4lab.errors import bad

    frame = claims_frame()
    if state is not None:
        if state not in get_args(State):
            raise bad("--state", state, "one of " + ", ".join(get_args(State)))
        frame = frame[frame["state"] == state]
    if of is not None:
        named = frame[["id", "room", "pulls"]].agg(" ".join, axis=1)
        frame = frame[named.str.contains(of, regex=False)]
    console = Console()
    console.print(frame_table(frame[["id", "claim", "kind", "place", "state", "interval", "command"]]))
    console.print(f"{frame['id'].nunique()} claims")


@app.command()
def readme(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where README differs.")] = False,
) -> None:
    """Write README's generated tables (claims, features, patches) anew from the data.

    Examples:

    - `g4lab claims readme`
    - `g4lab claims readme --check`
    """
    from g4lab import env
    from g4lab.claims.tables import rewrite
    from g4lab.errors import G4LabError

    path = env.data_dir().parent / "README.md"
    before = path.read_text()
    after = rewrite(before)
    if check and after != before:
        raise G4LabError("README.md differs from the data: run `g4lab claims readme`")
    if after != before:
        env.atomic_write(path, after)
    print("README.md is as the data say" if after == before else f"{path.name} written")
