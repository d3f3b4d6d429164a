"""What a bundle says about itself: manifest.json, checksums that `sha256sum -c` reads, and the install script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import g4lab
from g4lab import env
from g4lab.bundle import parcels
from g4lab.bundle.node import Node
from g4lab.bundle.parcels import Parcel, sha256
from g4lab.bundle.recipe import Recipe
from g4lab.bundle.wheels import Metadata

NAME, INSTALL = "manifest.json", "install.sh"
SUMS = {"parcels": "parcels.sha256", "files": "files.sha256"}


def about(recipe: Recipe, node: Node, carried: Iterable[Metadata], cuts: list[dict], limit: int) -> dict:
    """What the bundle was made from: versions, commit, what is cut, left out and stood in for. No time, no machine."""
    sha, dirty = env.commit()
    return {
        "g4lab": g4lab.__version__,
        "commit": sha,
        "dirty": dirty,
        "python": recipe.python,
        "torch": recipe.torch,
        "node": node.name,
        "tools": node.tools,
        "limit": limit,
        "packages": {package.name: str(package.version) for package in sorted(carried, key=lambda p: p.name)},
        "slimmed": cuts,
        "left_out": recipe.left_out,
        "stand_ins": recipe.stand_ins,
    }


def pack(files: Mapping[str, Path], limit: int, folder: Path) -> dict:
    """Pack `files` (member name -> path) into parcels in `folder`; returns "parcels" and "files": sizes, hashes."""
    plan = parcels.plan(files, limit)
    written = [parcels.write(parcel, folder) for parcel in plan]
    return {
        "parcels": {path.name: _entry(path) for path in written},
        "files": {name: _entry(files[name]) | {"parcels": _holding(plan, files[name])} for name in sorted(files)},
    }


def write(content: dict, folder: Path) -> None:
    """Write manifest.json, the checksums of parcels and files, and install.sh into `folder`."""
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n")
    for part, name in SUMS.items():
        lines = [f"{entry['sha256']}  {file}\n" for file, entry in content[part].items()]
        (folder / name).write_text("".join(lines))
    shutil.copyfile(Path(__file__).parent / INSTALL, folder / INSTALL)
    (folder / INSTALL).chmod(0o755)


def _entry(path: Path) -> dict:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _holding(plan: list[Parcel], path: Path) -> list[str]:
    return sorted(parcel.name for parcel in plan if any(piece.path == path for piece in parcel.pieces))
