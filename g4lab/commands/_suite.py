"""How `g4lab bench` runs a suite of kernel benchmarks: prove, record, time, record, show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from g4lab import records
from g4lab.commands._progress import bar
from g4lab.commands._table import frame_table
from g4lab.errors import G4LabError, Unavailable

if TYPE_CHECKING:
    from g4lab.bench.suite import Proof, Suite

NAMED = 5  # of the checks that failed; the records have them all


def run(suite: Suite, folder: Path | None, show: Callable[[object], None]) -> None:
    """Proofs to NAME.CLAIM.jsonl and times to NAME.latency.jsonl in `folder` (default: this run's), then `show(times)`.

    Every proof and the times of every case are recorded at once; what does not hold is recorded too, and raised at the
    end.

    Raises:
        Unavailable: kernels cannot be timed here; the table of what could not run is shown before.
        G4LabError: a proof does not hold, or a provider broke the CUDA context.
    """
    from g4lab.bench import timing

    console = Console()
    try:
        timing.require_gpu()
    except Unavailable:
        console.print(frame_table(suite.availability()))
        raise

    folder = folder or records.where()
    failed = prove(suite.name, suite.prove, suite.claim, folder)

    before = timing.clocks()

    def keep(frame):
        clocks = {"clocks_before": before, "clocks_after": timing.clocks()}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
            parameters = {key: row.pop(key) for key in suite.keys if key in row}
            record = records.new_record(f"{suite.name}.latency", {**row, **clocks}, parameters)
            records.append(record, folder / f"{suite.name}.latency.jsonl")

    with bar("timing") as advance:
        frame = suite.measure(keep=keep, progress=advance)
    show(frame)
    console.print(f"records in {folder}")
    require_none(failed, suite.claim)


def prove(
    name: str, proofs: Callable[..., Iterable[Proof]], claim: tuple[str, str], folder: Path | None
) -> list[Proof]:
    """Proofs to NAME.CLAIM.jsonl in `folder`, each at once; None records nothing. Returns those that do not hold."""
    what, claimed = claim
    found = []
    with bar(claimed) as advance:
        for proof in proofs(progress=advance):
            found.append(proof)
            if folder:
                record = records.new_record(f"{name}.{what}", proof.values, proof.parameters)
                records.append(record, folder / f"{name}.{what}.jsonl")
    failed = [proof for proof in found if not proof.holds]
    Console().print(f"{name}: {claimed} holds in {len(found) - len(failed)} of {len(found)} checks")
    return failed


def require_none(failed: Sequence[Proof], claim: tuple[str, str]) -> None:
    """Raises G4LabError with the first proofs that do not hold, if there are any."""
    if failed:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise G4LabError(f"no {claim[1]}: " + "; ".join(map(str, failed[:NAMED])) + more)
