"""Look at records, and move a run's records into data/records/ to commit them."""

from pathlib import Path
from typing import Annotated

import typer

from g4lab import records
from g4lab.commands._group import group
from g4lab.errors import bad

app = group(__doc__)

Where = Annotated[
    Path | None, typer.Argument(help="A .jsonl file or a folder of them.", show_default="this run's records")
]


@app.command("list")
def list_records(
    path: Where = None,
    name: Annotated[str | None, typer.Option(help="Only records of this name.")] = None,
) -> None:
    """One line for each record: id, time, kind, name, machine and values; unreadable lines are reported below.

    Examples:

    - `g4lab record list`
    - `g4lab record list data/records --name router.latency`
    """
    from rich.console import Console
    from rich.table import Table

    found = records.read(path)
    table = Table("id", "time (UTC)", "kind", "name", "machine", "commit", "values")
    for record in found.records:
        if name in (None, record.name):
            values = ", ".join(f"{key}={_short(value)}" for key, value in list(record.values.items())[:4])
            commit = (record.commit or "unknown")[:9] + ("+" if record.dirty else "")
            table.add_row(
                record.id[:8],
                f"{record.time:%Y-%m-%d %H:%M:%S}",
                record.kind,
                record.name,
                record.where,
                commit,
                values,
            )
    Console().print(table)
    _report(found)


@app.command()
def show(
    record_id: Annotated[str, typer.Argument(help="The record's id, or the first characters of it.")],
    path: Where = None,
) -> None:
    """The whole record as JSON.

    Example: `g4lab record show 1f0c2a9b data/records`
    """
    from rich.console import Console

    found = records.read(path)
    matching = [record for record in found.records if record.id.startswith(record_id)]
    if len(matching) != 1:
        raise bad("record_id", record_id, f"the start of exactly one id; {len(matching)} match")
    Console().print_json(records.to_json(matching[0]))
    _report(found)


@app.command()
def commit(
    path: Where = None,
    machine: Annotated[str | None, typer.Option(help="Folder below data/records/; default: this machine.")] = None,
) -> None:
    """Copy a run's records into data/records/MACHINE/, ready for `git add`. Records already there are left out.

    Example: `g4lab record commit runs/20261121T090000Z/records --machine nvidia-h200`
    """
    folder = records.committed_dir(machine)
    known = {record.id for record in records.read(folder).records} if folder.exists() else set()
    found = records.read(path)
    fresh = [record for record in found.records if record.id not in known]
    for record in fresh:
        kind = "recorded" if record.kind == "live" else record.kind
        records.append(record.model_copy(update={"kind": kind}), folder / f"{record.name}.jsonl")
    print(f"{len(fresh)} records added to {folder}, {len(found.records) - len(fresh)} were there already")
    _report(found)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def _report(found: records.RecordFile) -> None:
    for problem in found.problems:
        typer.echo(f"not a record: {problem}", err=True)
    if found.problems:
        raise typer.Exit(1)
