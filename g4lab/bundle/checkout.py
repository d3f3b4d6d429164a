"""g4lab itself: its wheel, and the rest of the checkout that tests, campaign and notebooks read."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from g4lab import env
from g4lab.bundle import wheels
from g4lab.errors import Unavailable

_BUILD = ("g4lab", "pyproject.toml", "README.md")


def make_wheel(folder: Path) -> Path:
    """Build g4lab's wheel from the checkout's tracked files into `folder`; the same files give the same bytes.

    Raises:
        Unavailable: g4lab does not run from a git checkout, or setuptools is not installed.
    """
    root = _root()
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        for name in _tracked(root):
            if name.split("/")[0] in _BUILD:
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / name, source / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        done = subprocess.run([*command, "--wheel-dir", work, str(source)], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"g4lab's wheel could not be built\n{done.stderr.strip()[-500:]}")
        (built,) = Path(work).glob("g4lab-*.whl")
        return wheels.slim(built, folder)[0]


def files() -> dict[str, bytes]:
    """The tracked files outside of the package, and COMMIT. Notebooks come without outputs: they are executed there."""
    root = _root()
    names = [name for name in _tracked(root) if name.split("/")[0] != "g4lab"]
    found = {name: (root / name).read_bytes() for name in names}
    sha, dirty = env.commit()
    found[env.COMMIT_FILE] = f"{sha}{'+' if dirty else ''}\n".encode()
    return {name: _without_outputs(content) if name.endswith(".ipynb") else content for name, content in found.items()}


def pack(contents: Mapping[str, bytes], path: Path) -> Path:
    """Write `contents` (name -> bytes) as the tar.gz `path`. The same contents give the same bytes."""
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name in sorted(contents):
            member = tarfile.TarInfo(name)
            member.size = len(contents[name])
            archive.addfile(member, io.BytesIO(contents[name]))
    return path


def _without_outputs(notebook: bytes) -> bytes:
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def _root() -> Path:
    return env.checkout("notebooks").parent


def _tracked(root: Path) -> list[str]:
    done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"a bundle is made from a git checkout of g4lab; git says: {done.stderr.strip()}")
    return sorted(name for name in done.stdout.split("\0") if name and (root / name).is_file())
