"""How `g4lab bench` runs a suite of kernel benchmarks: prove, record, time, record, show."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from g4lab import records
from g4lab.commands._progress import bar
from g4lab.commands._table import frame_table
from g4lab.errors import G4LabError, Unavailable

NAMED = 5  # of the checks that failed; the records have them all


def run(name: str, bench, folder: Path | None, prove: dict, measure: dict, show: Callable[[object], None]) -> None:
    """Proofs to NAME.bits.jsonl and times to NAME.latency.jsonl in `folder` (default: this run's), then `show(times)`.

    `bench` is a module like g4lab.bench.router: availability(), prove(progress=..., **prove), measure(progress=...,
    **measure) and KEYS. What does not hold is recorded too, and raised at the end.

    Raises:
        Unavailable: kernels cannot be timed here; the table of what could not run is shown before.
        G4LabError: a proof does not hold.
    """
    from g4lab.bench import timing

    console = Console()
    try:
        timing.require_gpu()
    except Unavailable:
        console.print(frame_table(bench.availability()))
        raise

    folder = folder or records.where()
    with bar("bit-equality") as advance:
        proofs = bench.prove(progress=advance, **prove)
    for proof in proofs:
        record = records.new_record(f"{name}.bits", proof.values, proof.parameters)
        records.append(record, folder / f"{name}.bits.jsonl")
    failed = [proof for proof in proofs if not proof.holds]
    console.print(f"bit-equality holds in {len(proofs) - len(failed)} of {len(proofs)} checks")

    before = timing.clocks()
    with bar("timing") as advance:
        frame = bench.measure(progress=advance, **measure)
    clocks = {"clocks_before": before, "clocks_after": timing.clocks()}
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        parameters = {key: row.pop(key) for key in bench.KEYS if key in row}
        record = records.new_record(f"{name}.latency", {**row, **clocks}, parameters)
        records.append(record, folder / f"{name}.latency.jsonl")
    show(frame)
    console.print(f"records in {folder}")
    if failed:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise G4LabError("not bit-identical: " + "; ".join(map(str, failed[:NAMED])) + more)
