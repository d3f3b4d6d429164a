"""The report of a run: one HTML file with every notebook's state, verdicts and figures, readable in light and dark."""

import json
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from g4lab import env, records
from g4lab.batch import Entry, RunState, load_state

VERDICT = "verdict:"


class Figure(NamedTuple):
    """A PNG as base64 text, and the heading it stands under."""

    caption: str
    png: str


class Page(NamedTuple):
    """What the report shows of one notebook."""

    name: str
    title: str
    entry: Entry
    html: str | None
    verdicts: list[str]
    figures: list[Figure]


def write(folder: Path) -> Path:
    """Write report.html of the run in `folder` and return its path. A notebook without readable output shows its state.

    A notebook's verdicts are the lines it prints that begin with "Verdict:".

    Raises:
        BadInput: the folder holds no run.
    """
    from jinja2 import Environment, StrictUndefined

    state = load_state(folder)
    found = records.read(folder / "records") if (folder / "records").exists() else records.RecordFile([], [])
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        resources.files("g4lab").joinpath("report.html.j2").read_text()
    )
    html = template.render(
        state=state,
        started=f"{state.started:%Y-%m-%d %H:%M} UTC",
        machine=_machine(state),
        versions=", ".join(f"{name} {version}" for name, version in state.versions.items() if version),
        pages=[_page(folder, name, entry) for name, entry in state.notebooks.items()],
        records=sorted(Counter((record.name, record.kind) for record in found.records).items()),
        problems=found.problems,
    )
    path = folder / "report.html"
    env.atomic_write(path, html)
    return path


def verdicts(notebook: Path) -> list[str]:
    """The lines of an executed notebook's output that begin with "Verdict:"; none of one that cannot be read."""
    return _verdicts(output for cell in _cells(notebook) for output in cell.get("outputs", []))


def _page(folder: Path, name: str, entry: Entry) -> Page:
    notebook = folder / "notebooks" / f"{name}.ipynb"
    title, heading, figures = None, name, []
    for cell in _cells(notebook):
        if cell["cell_type"] == "markdown":
            headings = [line.lstrip("# ") for line in _text(cell["source"]).splitlines() if line.startswith("#")]
            title = title or (headings[0] if headings else None)
            heading = headings[-1] if headings else heading
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                figures.append(Figure(heading, _text(data["image/png"]).replace("\n", "")))
    html = f"html/{name}.html"
    return Page(name, title or name, entry, html if (folder / html).exists() else None, verdicts(notebook), figures)


def _cells(notebook: Path) -> list[dict]:
    try:
        return json.loads(notebook.read_bytes())["cells"]
    except (OSError, ValueError, KeyError):  # never started, or stopped while papermill was writing
        return []


def _verdicts(outputs: Iterable[dict]) -> list[str]:
    texts = (_text(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs)
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [line for line in lines if line.lower().startswith(VERDICT)]


def _machine(state: RunState) -> str:
    machine = state.machine
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']} GiB, {gpus}"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
