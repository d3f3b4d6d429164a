"""Which names in SGLang the patches hang on, and whether the installed version has them."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from g4lab.errors import bad
from g4lab.patches.catalogue import REGISTRY
from g4lab.patches.registry import Hook

SUPPORTED_SGLANG = ("0.5.17", "0.5.21")  # what the patches were run with: by tests/, 0.5.17 by .ci/check_sglang.py


@dataclass(frozen=True)
class Target:
    """One hook's place in SGLang, under the name that it has there; why: what is missing, None where all was found."""

    patch: str
    target: str
    kind: str
    found: bool
    why: str | None


def resolve(target: str) -> object:
    """The object that dotted `target` names now, importing its module. Raises ImportError or AttributeError."""
    owner, name = target.rsplit(".", 1)
    return getattr(pkgutil.resolve_name(owner), name)


def place(hook: Hook) -> tuple[str, object]:
    """The name of the hook's target in the installed SGLang, and the object that it names now.

    Raises LookupError, with the name and why, where SGLang has none of the target's names or lacks what the hook needs.
    """
    target = next((name for name in hook.names if _why_not(name) is None), hook.target)
    for name in (target, *hook.needs):
        if error := _why_not(name):
            raise LookupError(f"{name} ({error})")
    return target, resolve(target)


def _why_not(name: str) -> Exception | None:
    try:
        resolve(name)
    except (ImportError, AttributeError) as error:
        return error
    return None


def targets_report(package: Path | str | None = None) -> list[Target]:
    """One row for each hook of each patch, found or not.

    Reads SGLang's source without importing it, so it needs no GPU and no kernels, and takes milliseconds.

    Args:
        package: the folder `sglang` of any version, from an unpacked wheel for instance; default the installed one.

    Raises:
        BadInput: `package` is no folder with SGLang's source.
    """
    if package is None:
        spec = importlib.util.find_spec("sglang")
        package = Path(spec.origin).parent if spec else None
    elif not (Path(package) / "srt").is_dir():
        raise bad("package", str(package), "the folder sglang of an unpacked SGLang, with its folder srt")
    return [
        _row(patch.name, hook, package and Path(package)) for patch in REGISTRY.values() for hook in patch.hooks
    ]  # fmt: skip


def _row(patch: str, hook: Hook, package: Path | None) -> Target:
    if package is None:
        return Target(patch, hook.target, hook.kind, False, "SGLang is not installed")
    target = next((name for name in hook.names if _missing(name, package) is None), hook.target)
    why = next(filter(None, (_missing(name, package) for name in (target, *hook.needs))), None)
    return Target(patch, target, hook.kind, why is None, why)


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
        definitions = [node for node in _statements(scope) if part in _defined(node)]
        if not definitions:
            return f"{source.relative_to(package.parent)} defines no {'.'.join(parts)}"
        scope = getattr(definitions[0], "body", [])
    return None


def _statements(scope: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a scope, those under its conditions too."""
    for node in scope:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement gives to something, an import or an annotated field among them."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return {node.name} if hasattr(node, "name") else set()
