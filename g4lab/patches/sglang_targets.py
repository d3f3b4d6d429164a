"""Which names in SGLang the patches hang on, and whether the installed version has them."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from g4lab.patches.catalogue import REGISTRY

SUPPORTED_SGLANG = ">=0.5.21,<0.5.22"  # the versions that the patches were run with


@dataclass(frozen=True)
class Target:
    """One hook's place in the installed SGLang; why: what is missing, None where it was found."""

    patch: str
    target: str
    kind: str
    found: bool
    why: str | None


def resolve(target: str) -> object:
    """The object that dotted `target` names now, importing its module. Raises ImportError or AttributeError."""
    owner, name = target.rsplit(".", 1)
    return getattr(pkgutil.resolve_name(owner), name)


def targets_report() -> list[Target]:
    """One row for each hook of each patch, found or not.

    Reads SGLang's source without importing it, so it needs no GPU and no kernels, and takes milliseconds.
    """
    spec = importlib.util.find_spec("sglang")
    rows = []
    for patch in REGISTRY.values():
        for hook in patch.hooks:
            why = _missing(hook.target, Path(spec.origin).parent) if spec else "SGLang is not installed"
            rows.append(Target(patch.name, hook.target, hook.kind, why is None, why))
    return rows


def _missing(target: str, package: Path) -> str | None:
    """Why `target` is not defined in SGLang's source under `package`, or None."""
    folder, parts = package, target.split(".")[1:]
    while parts and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    source = folder / f"{parts.pop(0)}.py"
    if not source.is_file():
        return f"no module {source.relative_to(package.parent)}"
    scope = ast.parse(source.read_text()).body
    for part in parts:
        definitions = [node for node in scope if getattr(node, "name", None) == part]
        if not definitions:
            return f"{source.relative_to(package.parent)} defines no {'.'.join(parts)}"
        scope = getattr(definitions[0], "body", [])
    return None
