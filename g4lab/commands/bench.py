"""Prove and time kernels on this machine's GPU beside their peers; measure its ceilings; time the reading of traces."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from g4lab.commands._group import group

app = group(__doc__)


@app.command()
def router(
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the records.", show_default="this run's records")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Samples per provider and size.")] = 200,
    rows: Annotated[int, typer.Option(min=1, help="Random rows of each bit-equality check.")] = 1_048_576,
) -> None:
    """Gemma-4's router: bit-equality with eager first, then time under CUDA-graph replay.

    Without a GPU it says what could not run and why, and times nothing.

    Examples:

    - `g4lab bench router --records data/records/nvidia-h200`
    - `g4lab bench router --rounds 50 --rows 65536`
    """
    from rich.console import Console

    from g4lab.bench import router as bench
    from g4lab.bench.suite import Suite
    from g4lab.commands import _suite
    from g4lab.commands._table import frame_table

    def show(times):
        Console().print(frame_table(times.round(3)))

    prove, measure = partial(bench.prove, rows), partial(bench.measure, rounds=rounds)
    _suite.run(Suite("router", prove, measure, bench.KEYS, bench.availability), records_dir, show)


@app.command()
def norms(
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the records.", show_default="this run's records")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Samples per provider and size.")] = 200,
    operation: Annotated[
        list[str] | None, typer.Option(help="Only this operation; may be given again.", show_default="all five")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Only this size; may be given again.", show_default="1 to 8192")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also time torch.compile of the eager chain (compiles for every case).")
    ] = False,
) -> None:
    """Gemma-4's norm kernels: bits first, then time against eager, SGLang, an empty launch and a copy of equal bytes.

    Shows µs per call for every case, and whether the goals are met. Without a GPU it says what could not run and why,
    and times nothing.

    Examples:

    - `g4lab bench norms --records data/records/nvidia-h200`
    - `g4lab bench norms --operation qkv_norm --tokens 1 --tokens 8192 --rounds 50`
    """
    from rich.console import Console

    from g4lab.bench import norms as bench
    from g4lab.bench.norms_cases import OPERATIONS, TOKENS, cases
    from g4lab.bench.norms_goals import goals
    from g4lab.bench.norms_proof import prove
    from g4lab.bench.suite import Suite
    from g4lab.commands import _suite
    from g4lab.commands._table import frame_table

    sizes, operations = tuple(tokens or TOKENS), tuple(operation or OPERATIONS)
    cases(sizes, operations)  # what cannot be measured is an error before anything runs
    measure = partial(bench.measure, sizes, operations, rounds=rounds, compiled=compiled)

    def show(times):
        console = Console()
        for title, table in bench.medians(times):
            console.print(title, frame_table(table.round(2)))
        console.print(frame_table(goals(times)))

    bits = partial(prove, operations=operations)
    _suite.run(Suite("norms", bits, measure, bench.KEYS, bench.availability), records_dir, show)


@app.command()
def extend(
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the records.", show_default="this run's records")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Only this shape (spaces or hyphens); may be given again.", show_default="all"),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this provider out; may be given again.", show_default="none")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Samples per provider and shape, at most.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of all samples of a shape; long kernels get fewer.")] = 8,
) -> None:
    """Extend attention: every output within its error budget, then time against SGLang's kernel with three tiles, SDPA,
    FlexAttention and FlashAttention.

    Shows µs per call, TFLOP/s and GB/s beside what this GPU reaches, and whether the goals are met. A shape's records
    are kept as soon as it is timed. Without a GPU it says what could not run and why, and times nothing.

    Examples:

    - `g4lab bench extend --records data/records/nvidia-h200`
    - `g4lab bench extend --shape "prefill long" --shape "verify chat" --rounds 50`
    - `g4lab bench extend --without "PyTorch FlexAttention"`
    """
    from rich.console import Console

    from g4lab.bench import extend as bench
    from g4lab.bench.extend_goals import goals
    from g4lab.bench.extend_proof import CLAIM, prove
    from g4lab.bench.suite import Suite
    from g4lab.commands import _suite
    from g4lab.commands._table import frame_table

    chosen = shape or None, tuple(without or ())
    bench.choose(*chosen)  # what cannot be measured is an error before anything runs

    def show(times):
        console = Console()
        for title, table in bench.tables(times):
            console.print(title, frame_table(table.round(3)))
        console.print(frame_table(goals(times)))

    errors, measure = partial(prove, *chosen), partial(bench.measure, *chosen, rounds=rounds, seconds=seconds)
    _suite.run(Suite("extend", errors, measure, bench.KEYS, bench.availability, CLAIM), records_dir, show)


@app.command()
def moe(
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the records.", show_default="this run's records")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Only this size; may be given again.", show_default="1 to 8192")
    ] = None,
    tp: Annotated[str, typer.Option(help="Ranks that share each expert's width, with commas; one of them runs.")] = "1",
    routing: Annotated[str, typer.Option(help="uniform, zipf, zipf:S or recorded:FILE.")] = "uniform",
    configs: Annotated[
        Path | None,
        typer.Option(
            help="Config files to time SGLang with: a value for SGLANG_MOE_CONFIG_DIR.",
            show_default="those g4lab ships",
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this provider out; may be given again.", show_default="none")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Samples per provider and size, at most.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of all samples of a size; long kernels get fewer.")] = 8,
) -> None:
    """The expert layer of 26B-A4B: every output within its error budget, then time against SGLang with upstream's and
    with g4lab's config files, PyTorch's grouped_mm, vLLM, an empty launch and a copy of the touched weights' bytes.

    Shows µs per call, TFLOP/s and GB/s beside what this GPU reaches, and whether the goals are met. A size's records
    are kept as soon as it is timed. Without a GPU it says what could not run and why, and times nothing.

    Examples:

    - `g4lab bench moe --records data/records/nvidia-h200`
    - `g4lab bench moe --tokens 1 --tokens 16 --tp 1,2 --rounds 50`
    - `g4lab bench moe --configs tuned --without vLLM`
    """
    from rich.console import Console

    from g4lab.bench import moe as bench
    from g4lab.bench.moe_goals import goals
    from g4lab.bench.moe_proof import CLAIM, prove
    from g4lab.bench.suite import Suite
    from g4lab.commands import _suite
    from g4lab.commands._table import frame_table
    from g4lab.errors import bad

    if not all(part.isdigit() for part in tp.split(",")):
        raise bad("tp", tp, "numbers of ranks with commas between, as 1,2")
    ranks = [int(part) for part in tp.split(",")]
    chosen = bench.choose(tokens, ranks, without or (), routing=routing, files=configs)  # an error before anything runs

    def show(times):
        console = Console()
        for title, table in bench.tables(times):
            console.print(title, frame_table(table.round(3)))
        console.print(frame_table(goals(times)))

    errors, measure = partial(prove, chosen), partial(bench.measure, chosen, rounds=rounds, seconds=seconds)
    available = partial(bench.availability, configs)
    _suite.run(Suite("moe", errors, measure, bench.KEYS, available, CLAIM), records_dir, show)


@app.command()
def proofs(
    suite: Annotated[
        list[str] | None, typer.Argument(help="router, norms, extend or moe.", show_default="all four")
    ] = None,
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the records.", show_default="this run's records")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Tiny shapes, also in Triton's interpreter; leaves no records.")
    ] = False,
) -> None:
    """Every suite's proofs and no timings: bits of the router and the norms, error budgets of attention and experts.

    Examples:

    - `g4lab bench proofs --records data/records/nvidia-h200`
    - `g4lab bench proofs moe --tiny`
    """
    from g4lab import env, records
    from g4lab.bench import proofs as bench
    from g4lab.commands import _suite

    if tiny:
        env.interpret_without_gpu()  # before anything imports triton
    chosen = {name: bench.of(name, tiny) for name in suite or bench.SUITES}
    folder = None if tiny else records_dir or records.where()
    failed = {name: _suite.prove(name, each.prove, each.claim, folder) for name, each in chosen.items()}
    for name, those in failed.items():
        _suite.require_none(those, chosen[name].claim)


@app.command()
def ceilings(
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the record.", show_default="this run's records")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Samples of each ceiling.")] = 20,
) -> None:
    """What this GPU can do at most: copy bandwidth, bf16 matmul rate and launch floor, each with its A/A interval.

    Without a GPU it shows the data sheets' peaks instead, and fails.

    Example:

    - `g4lab bench ceilings --records data/records/nvidia-h200`
    """
    import pandas as pd
    from rich.console import Console

    from g4lab import records
    from g4lab.bench import ceilings as bench
    from g4lab.bench import timing
    from g4lab.commands._progress import bar
    from g4lab.commands._table import frame_table
    from g4lab.errors import Unavailable

    console = Console()

    def show(all_of):
        columns = ("chip", "copy_gbps", "matmul_tflops", "launch_us", "kind")
        console.print(frame_table(pd.DataFrame([{name: getattr(each, name) for name in columns} for each in all_of])))

    try:
        timing.require_gpu()
    except Unavailable:
        show(bench.chips().values())
        raise
    before = timing.clocks()
    with bar("timing") as advance:
        measured = bench.measure(rounds=rounds, progress=advance)
    show([measured, *bench.chips().values()])
    for name, (low, high) in measured.noise.items():
        console.print(f"{name} measured twice: ratio {low:.4f} to {high:.4f}")
    values = {name: getattr(measured, name) for name in bench.MEASURED}
    parameters = {"copy_bytes": bench.COPY_BYTES, "matmul_size": bench.MATMUL_SIZE, "rounds": rounds}
    parameters |= {"clocks_before": before, "clocks_after": timing.clocks()}
    record = records.new_record("ceilings", values, parameters)
    console.print(f"record in {records.append(record, (records_dir or records.where()) / 'ceilings.jsonl')}")


@app.command()
def trace(
    file: Annotated[
        Path | None, typer.Argument(help="A PyTorch profiler trace.", show_default="one made with --events")
    ] = None,
    events: Annotated[int, typer.Option(min=1, help="Events of the trace to make where no file is given.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each reader reads it.")] = 3,
    hta_python: Annotated[
        str | None, typer.Option(help="A Python that has HolisticTraceAnalysis.", show_default="this one")
    ] = None,
) -> None:
    """Time and memory of `g4lab.trace.load` beside HolisticTraceAnalysis (0.5.0), in turn, each in its own process.

    Examples:

    - `g4lab bench trace profile.trace.json.gz --hta-python other-venv/bin/python`
    - `g4lab bench trace --events 1000000`
    """
    import tempfile

    from rich.console import Console

    from g4lab.bench import trace_maker, trace_readers
    from g4lab.commands._table import frame_table

    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        if file is None:
            status.update(f"making a trace of {events:,} events")
            file = Path(folder) / "made.trace.json.gz"
            made = trace_maker.write_trace(file, events)
            console.print(f"made a trace of {made:,} events, {file.stat().st_size / 1e6:.1f} MB packed")
        frame = trace_readers.compare(file, rounds, hta_python, progress=status.update)
    Console().print(frame_table(frame.round(2)))
    mine, hta = frame.set_index("reader").loc[["g4lab", "hta"]].to_dict("records")
    if hta["note"]:
        console.print(f"hta could not run: {hta['note']}", style="yellow", markup=False)
    else:
        less = mine["peak_mb"] / hta["peak_mb"]
        typer.echo(f"g4lab reads it {hta['seconds'] / mine['seconds']:.1f}x faster, with {less:.0%} of the memory")
