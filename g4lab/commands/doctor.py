"""`g4lab doctor`."""

import typer

from g4lab import doctor

_COLOUR = {"ok": "green", "limited": "yellow", "missing": "red"}


def command() -> None:
    """One table of what this machine can prove and what stops it; exit code 0 when `make run` can work here.

    Examples:

    - `g4lab doctor`
    - `TRITON_INTERPRET=1 g4lab doctor`
    """
    from rich.console import Console
    from rich.table import Table

    findings = doctor.examine()
    table = Table("check", "state", "found", "what it means")
    for finding in findings:
        state = f"[{_COLOUR[finding.state]}]{finding.state}[/]"
        table.add_row(finding.check, state, finding.detail, finding.meaning)
    console = Console()
    console.print(table)
    if doctor.ready(findings):
        console.print("`make run` can work here.")
        return
    lacking = ", ".join(f.check for f in findings if f.needed and f.state == "missing")
    console.print(f"`make run` cannot work here: {lacking}.")
    raise typer.Exit(1)
