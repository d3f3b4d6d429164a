"""Read traces: where the time goes, what differs between two of them, and the least it could be."""

from pathlib import Path
from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)

Phase = Annotated[str | None, typer.Option(help="Only this phase: prefill, decode, verify, draft, idle or unknown.")]
Of = Annotated[
    str | None,
    typer.Option(help="kernels or operators (CPU time, never kernel performance).", show_default="what the trace has"),
]
Html = Annotated[Path | None, typer.Option(help="Also write the tables and figures to this one HTML file.")]


@app.command()
def summarize(
    file: Annotated[Path, typer.Argument(help="A trace: PyTorch profiler file or folder, nsys .sqlite, ncu .csv.")],
    phase: Phase = None,
    of: Of = None,
    by: Annotated[str, typer.Option(help="Rows of the first table: family or name.")] = "family",
    top: Annotated[int, typer.Option(min=0, help="How many single kernels to list.")] = 10,
    html: Html = None,
    csv: Annotated[
        Path | None, typer.Option(help="Also write the frames: the first table here (.csv or .parquet), others beside.")
    ] = None,
) -> None:
    """Where the time of a trace goes: devices, families, single kernels, steps, launches per token.

    Examples:

    - `g4lab trace summarize decode.trace.json.gz --phase decode`
    - `g4lab trace summarize profile_folder/ --html profile.html --csv families.parquet`
    """
    from g4lab.commands._table import show
    from g4lab.trace import tables
    from g4lab.trace.intervals import breakdown, launch_gaps

    _check_suffix(csv)
    trace = _load(file)
    results = {"table": tables.kernel_table(trace, by, phase, of)}
    if phase is None and trace.steps["phase"].nunique() > 1:
        results["phases"] = tables.by_phase(trace, of)
    if top:
        results["top"] = tables.top(trace, top, phase, of)
    results["breakdown"] = breakdown(trace)
    if len(trace.steps):
        results["steps"] = tables.per_step(trace, of)
        results["launches"] = tables.launches_per_token(trace)
    results["coverage"] = tables.coverage(trace)
    show(results.values())
    if html:
        results["gaps"] = launch_gaps(trace, phase)
    _write(results, csv, html, f"Trace {file.name}", [trace])


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="The trace before.")],
    b: Annotated[Path, typer.Argument(help="The trace after.")],
    phase: Phase = None,
    of: Of = None,
    html: Html = None,
    csv: Annotated[Path | None, typer.Option(help="Also write all rows to this .csv or .parquet file.")] = None,
) -> None:
    """What changed between two traces: new and vanished kernels first, then the largest changes per step.

    Example: `g4lab trace diff none/ router/ --phase decode --html router.html`
    """
    from g4lab.commands._table import show
    from g4lab.trace import diff

    _check_suffix(csv)
    before, after = _load(a), _load(b)
    results = {"diff": diff(before, after, phase, of)}
    show(results.values())
    _write(results, csv, html, f"{a.name} → {b.name}", [before, after])


@app.command()
def roofline(
    file: Annotated[Path | None, typer.Argument(help="A GPU's trace.", show_default="the floors alone")] = None,
    model: Annotated[str, typer.Option(help="Whose floors: a name that `g4lab models` lists.")] = "26b-a4b",
    phase: Annotated[str, typer.Option(help="prefill, decode or verify.")] = "decode",
    batch: Annotated[int, typer.Option(help="Sequences in a step.")] = 1,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens that each computes in a step.", show_default="1 in decode")
    ] = None,
    context: Annotated[int, typer.Option(help="Keys already cached in each.")] = 0,
    tp: Annotated[int, typer.Option(help="Ranks; floors and times are one rank's.")] = 1,
    dtype_bytes: Annotated[float, typer.Option(help="Bytes of a weight, key or value.")] = 2,
    chip: Annotated[str, typer.Option(help="The data sheet's bandwidth and matmul rate of this one.")] = "H200 SXM",
    html: Html = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this .csv or .parquet file.")] = None,
) -> None:
    """The least time a chip could take for each family of a step, beside what a trace's kernels took.

    Examples:

    - `g4lab trace roofline --model 31b --batch 8 --context 1000`
    - `g4lab trace roofline decode.trace.json.gz --batch 8 --context 1000`
    """
    from g4lab.bench.ceilings import named
    from g4lab.bench.roofline import roofline
    from g4lab.commands._table import show
    from g4lab.gemma4 import spec

    _check_suffix(csv)
    ceilings, large = named(chip), spec(model)
    traces = [_load(file)] if file else []
    sizes = {"batch": batch, "new_tokens": new_tokens, "context": context, "dtype_bytes": dtype_bytes, "tp": tp}
    found = roofline(traces[0] if traces else None, large, phase=phase, ceilings=ceilings, **sizes)
    show([found])
    _write({"roofline": found}, csv, html, found.title, traces)


def _load(file: Path):
    from rich.console import Console

    from g4lab.commands._table import losses
    from g4lab.trace import load

    console = Console(stderr=True)
    with console.status(f"reading {file}"):
        trace = load(file)
    for line in losses(trace):
        console.print(f"{file.name}: {line}", style="yellow", markup=False, highlight=False)
    return trace


def _check_suffix(csv: Path | None) -> None:
    from g4lab.errors import bad
    from g4lab.trace.export import SUFFIXES

    if csv is not None and csv.suffix not in SUFFIXES:
        raise bad("--csv", str(csv), "a name that ends in " + " or ".join(SUFFIXES))


def _write(results: dict, csv: Path | None, html: Path | None, title: str, traces: list) -> None:
    from g4lab.trace import export

    if csv:
        first = next(iter(results))
        for name, result in results.items():
            path = csv if name == first else csv.with_stem(f"{csv.stem}-{name}")
            export.save(result, path)
            typer.echo(f"wrote {path}", err=True)
    if html:
        export.page(html, title, traces, list(results.values()))
        typer.echo(f"wrote {html}", err=True)
