"""A recipe: which wheels a bundle carries, what is cut from them, what is left out and what stands in for it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from g4lab.errors import bad

HERE = Path(__file__).parent
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?:\s+--hash=sha256:[0-9a-f]{64})+$")


@dataclass(frozen=True)
class Slim:
    """What is cut from one wheel, and why the node can do without it."""

    why: str
    drop: tuple[str, ...] = ()
    strip: bool = False


@dataclass(frozen=True)
class Recipe:
    """One recipe. `pins`, `slim` and `left_out` are by canonical package name.

    `pins` are versions; `left_out` are requirements that stay unmet, with the reason; `stand_ins` are module -> the
    names it must have, each of which raises when called; `lock` is the file with the pins and their hashes.
    """

    python: str
    torch: str
    lock: Path
    pins: dict[str, str]
    slim: dict[str, Slim]
    left_out: dict[str, str]
    stand_ins: dict[str, tuple[str, ...]]


def read_recipe(python: str, torch: str) -> Recipe:
    """The recipe for "3.12" and "2.11". Raises BadInput, naming those there are, for a pair without one."""
    found = {(recipe["python"], recipe["torch"]): (path, recipe) for path, recipe in _recipes()}
    if (python, torch) not in found:
        known = "; ".join(f"--python {p} --torch {t}" for p, t in sorted(found))
        raise bad("python and torch", f"{python}, {torch}", f"a pair that has a recipe: {known}")
    path, content = found[python, torch]
    lock = path.with_suffix(".lock")
    return Recipe(
        python,
        torch,
        lock,
        pins(lock),
        {name: Slim(s["why"], tuple(s.get("drop", ())), s.get("strip", False)) for name, s in content["slim"].items()},
        content["left_out"],
        {module: tuple(names) for module, names in content["stand_ins"].items()},
    )


def pins(lock: Path) -> dict[str, str]:
    """Package -> version of a lock file in pip's format, every line with a hash. Raises BadInput for another line."""
    found = {}
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not (pin := _PIN.match(line.strip())):
            raise bad(f"a line of {lock.name}", line, "NAME==VERSION --hash=sha256:...")
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def _recipes() -> list[tuple[Path, dict]]:
    return [
        (lock.with_suffix(".toml"), tomllib.loads(lock.with_suffix(".toml").read_text()))
        for lock in HERE.glob("*.lock")
    ]
