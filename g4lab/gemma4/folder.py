"""A checkpoint's folder on disk: made whole or not at all, and never on top of someone else's files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from g4lab.errors import bad

MARKER = "g4lab.json"


@contextlib.contextmanager
def checkpoint_folder(path: Path | str, made_of: dict) -> Iterator[Path]:
    """Yield a temporary folder beside `path` and rename it to `path` when the block ends well.

    An earlier checkpoint of g4lab at `path` is replaced, an empty folder filled. `made_of` goes into the marker file.

    Raises:
        BadInput: `path` is a file, or a folder with files that g4lab did not write.
    """
    path = Path(path)
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield work
        (work / MARKER).write_text(json.dumps(made_of, indent=2, sort_keys=True) + "\n")
        work.chmod(0o755)
        _put(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise bad("path", str(path), "a folder, not a file")
    if path.is_dir() and any(path.iterdir()) and not (path / MARKER).exists():
        raise bad("path", str(path), f"a new or empty folder, or one that g4lab wrote (it has no {MARKER})")


def _put(work: Path, path: Path) -> None:
    """Rename `work` to `path`; what was at `path` is set aside first, since a rename needs an empty target."""
    _refuse_foreign(path)  # again: someone may have written there meanwhile
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.old.") as aside:
        if path.exists():
            os.rename(path, Path(aside) / "old")
        os.rename(work, path)
