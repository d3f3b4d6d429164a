"""Wheels for another Python and another machine, fetched by pip with the lock's hashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from g4lab.bundle.node import Node
from g4lab.bundle.recipe import Recipe
from g4lab.errors import Unavailable


def fetch(recipe: Recipe, node: Node, folder: Path) -> list[Path]:
    """Download the lock's wheels into `folder`, sorted by name; pip's own configuration says from where.

    Raises:
        Unavailable: pip failed: no network, or an index without a wheel of that version, hash and platform.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--implementation", "cp", "--python-version", node.python]
    for platform in node.platforms:
        command += ["--platform", platform]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(recipe.lock)], capture_output=True, text=True
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-3:]
        raise Unavailable("\n".join(["pip could not fetch the wheels of " + recipe.lock.name, *said]))
    return sorted(folder.glob("*.whl"))
