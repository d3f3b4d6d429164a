"""What a node is assumed to bring, as data, and how that differs from what is there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from g4lab.errors import bad

DEFAULT = Path(__file__).parent / "node-cuda13.toml"


@dataclass(frozen=True)
class Node:
    """A kind of node: `packages` maps canonical names to a version, or to "" where only the presence is known.

    `glibc` ("2.39") bounds the wheels it can load, `tools` are programs it has on its PATH.
    """

    name: str
    python: str
    glibc: str
    tools: tuple[str, ...]
    packages: dict[str, str]

    @property
    def platforms(self) -> list[str]:
        """The wheel platform tags that x86-64 Linux with this glibc accepts, best first (PEP 600, 599, 571, 513)."""
        major, minor = map(int, self.glibc.split("."))
        tags = [f"manylinux_{major}_{n}_x86_64" for n in range(minor, 4, -1)]
        return [*tags, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def read_node(path: Path | None = None) -> Node:
    """Read a node file; None is the shipped one. Raises BadInput for what is no node file."""
    path = path or DEFAULT
    try:
        content = tomllib.loads(path.read_text())
        packages = {canonicalize_name(name): str(version) for name, version in content["packages"].items()}
        node = Node(content["name"], content["python"], content["glibc"], tuple(content["tools"]), packages)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, AttributeError) as error:
        why = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise bad("node", str(path), f"a TOML file with name, python, glibc, tools and [packages] ({why})") from error
    for key, value in (("python", node.python), ("glibc", node.glibc)):
        if not re.fullmatch(r"\d+\.\d+", value):
            raise bad(f"{key} in {path.name}", value, 'major.minor, as in "3.12"')
    return node
