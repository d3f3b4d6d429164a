"""`python -m g4lab.batch.execute JOB.json`: run one notebook with papermill in this process and say how it ended.

Always leaves the executed notebook, whole or partial, its HTML, and a result file that names the cell at fault.
"""

import json
import signal
import sys
from pathlib import Path

from pydantic import BaseModel

from g4lab import env


class Job(BaseModel):
    """One notebook to execute. Paths are absolute; `cwd` is the folder its cells run in."""

    notebook: Path
    output: Path
    html: Path
    result: Path
    cwd: Path
    parameters: dict
    cell_timeout_s: int


class Result(BaseModel):
    """How it ended: `error` is None when every cell ran; else one line, with the cell it happened in."""

    error: str | None = None
    cell: str | None = None


def execute(job: Job) -> Result:
    """Run the notebook; never raises for what happens inside its cells."""
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    job.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            job.notebook,
            job.output,
            job.parameters,
            kernel_name="python3",
            cwd=job.cwd,
            execution_timeout=job.cell_timeout_s,
        )
        result = Result()
    except PapermillExecutionError as error:
        result = Result(error=_line(f"{error.ename}: {error.evalue}"), cell=_cell(error.source, error.exec_count))
    except (CellTimeoutError, DeadKernelError, KeyboardInterrupt) as error:
        reasons = {CellTimeoutError: f"ran longer than {job.cell_timeout_s} s", DeadKernelError: "its kernel died"}
        cells = nbformat.read(job.output, 4).cells if job.output.exists() else []
        started = [c for c in cells if c.metadata.get("papermill", {}).get("start_time")]
        cell = _cell(started[-1].source, len([c for c in started if c.cell_type == "code"])) if started else None
        result = Result(error=reasons.get(type(error), "interrupted"), cell=cell)
    if job.output.exists():
        _write_html(job.output, job.html)
    return result


def _write_html(notebook: Path, html: Path) -> None:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab").from_filename(str(notebook))
    env.atomic_write(html, body)


def _cell(source: str, count: int | None) -> str:
    code = [line.strip() for line in source.splitlines() if line.strip() and not line.strip().startswith(("#", "%"))]
    return f"In [{count}]: {code[0][:80] if code else ''}"


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def main(job_file: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell started us in the background
    sys.modules["rfc3987_syntax"] = None  # jsonschema's check of "iri" if installed; takes longest of all to import
    job = Job.model_validate(json.loads(Path(job_file).read_text()))
    result = execute(job)
    env.atomic_write(job.result, result.model_dump_json())
    return 0 if result.error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
