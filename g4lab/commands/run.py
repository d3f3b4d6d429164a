"""Run the notebooks."""

import signal
from pathlib import Path
from typing import Annotated

import typer


def command(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NOTEBOOK]...", help="Names or files.", show_default="all of notebooks/"),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="auto, a name in notebooks/profiles/, or a YAML file.", show_default="auto")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", metavar="NAME=VALUE", help="For every notebook that declares it; VALUE is YAML."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/<UTC time>; with --resume the newest")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")] = False,
) -> None:
    """Execute notebooks with papermill into a folder of their own, and write a report with their figures.

    A notebook that fails keeps its partial output and the others still run; the exit code is then 1.

    Examples:

    - `g4lab run`
    - `g4lab run 10_router --profile h200`
    - `g4lab run 10_router 30_serving -p "tokens=[1, 64, 1024]"`
    - `g4lab run --resume`
    """
    from g4lab import batch, report
    from g4lab.batch import newest_run
    from g4lab.commands._progress import Progress, summary
    from g4lab.errors import bad
    from g4lab.profiles import load_profile, parse_assignments
    from g4lab.records import runs_dir

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if resume:
        if which or profile or parameter:
            raise bad(
                "--resume",
                " ".join([*(which or ()), profile or "", *(parameter or ())]).strip(),
                "nothing beside --out",
            )
        folder = out or newest_run(runs_dir())
        state = batch.reopen(folder)
    else:
        folder = out or batch.new_folder()
        if (folder / "state.json").exists():
            raise bad("--out", str(folder), "a new folder, or --resume to go on with the run in it")
        state = batch.prepare(which or (), load_profile(profile or "auto"), parse_assignments(parameter or ()), folder)
    print(f"into {folder}")
    try:
        with Progress(state) as progress:
            batch.run(state, folder, progress.watch)
    finally:
        print(summary(state))
        print(f"report: {report.write(folder)}")
    if any(entry.state != "done" for entry in state.notebooks.values()):
        raise typer.Exit(1)
