"""How long work shows itself: bars on a terminal, and of a batch run one line for each event in a log."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from g4lab import batch
from g4lab.batch import RunState


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for one piece of work; yields the callback (done, total) that moves it."""
    with Bars(console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class Progress:
    """Context manager whose `watch` draws a run's state; give it to `batch.run`."""

    def __init__(self, state: RunState) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._all = self._bars.add_task("notebooks", total=len(state.notebooks), what="")
        self._tasks: dict[str, int] = {}
        self._seen = {name: entry.state for name, entry in state.notebooks.items()}

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def watch(self, state: RunState, folder: Path) -> None:
        """Draw what has changed since the last call."""
        for name, entry in state.notebooks.items():
            if entry.state == "running":
                self._draw_cells(folder, name)
            if entry.state == self._seen[name]:
                continue
            self._seen[name] = entry.state
            if entry.state != "running" and name in self._tasks:
                self._bars.remove_task(self._tasks.pop(name))
            if self._bars.disable or entry.state != "running":
                self._bars.console.print(_line(name, entry), highlight=False, markup=False, soft_wrap=True)
        ended = sum(entry.state not in ("waiting", "running") for entry in state.notebooks.values())
        self._bars.update(self._all, completed=ended)

    def _draw_cells(self, folder: Path, name: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None, what="cells")
        if position := batch.cells(folder, name):
            self._bars.update(self._tasks[name], completed=position[0], total=position[1])


def summary(state: RunState) -> str:
    """The run as a table: state, seconds, and the cell and error of what failed."""
    table = Table("notebook", "state", "seconds", "cell", "error")
    for name, entry in state.notebooks.items():
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        table.add_row(*map(Text, (name, entry.state, seconds, entry.cell or "", entry.error or "")))
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as text:
        console.print(table)
    return text.get().rstrip()


def _line(name: str, entry) -> str:
    took = "" if entry.seconds is None else f" in {entry.seconds:.1f} s"
    fault = f" at {entry.cell}: {entry.error}" if entry.cell else f": {entry.error}" if entry.error else ""
    return f"{name}: {entry.state}{took}{fault}"
