"""Is what travels complete? Each requirement of a carried wheel is met by another, by the node, or left out by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from g4lab.bundle.wheels import Metadata
from g4lab.errors import bad


@dataclass(frozen=True)
class Need:
    """A requirement of a carried package and who meets it: "bundle", "node", "left out", or None."""

    of: str
    requirement: str
    met_by: str | None
    detail: str


def needs(
    carried: Iterable[Metadata], present: Mapping[str, str], left_out: Mapping[str, str], python: str
) -> list[Need]:
    """Look at every requirement on CPython `python`, x86-64 Linux. Extras of a requirement are not followed.

    Args:
        present: the node's packages, name -> version ("" where unknown: then its presence is enough).
        left_out: name -> why it is not needed; a carried or present version that does not fit is excused as well.
    """
    carried = list(carried)
    versions = dict(present) | {package.name: str(package.version) for package in carried}
    ours = {package.name for package in carried}
    where = _environment(python)
    return [
        _need(package.name, requirement, versions, ours, left_out)
        for package in carried
        for requirement in package.requires
        if requirement.marker is None or requirement.marker.evaluate(where)
    ]


def check(carried: Iterable[Metadata], present: Mapping[str, str], left_out: Mapping[str, str], python: str) -> None:
    """Raise BadInput that names every unmet requirement, or an entry of `left_out` that nothing asks for."""
    found = needs(carried, present, left_out, python)
    unmet = [f"{need.of} needs {need.requirement} ({need.detail})" for need in found if need.met_by is None]
    if unmet:
        raise bad(
            "wheels", "\n".join([f"{len(unmet)} requirements unmet", *unmet]), "wheels whose needs travel or are there"
        )
    asked = {canonicalize_name(Requirement(need.requirement).name) for need in found if need.met_by == "left out"}
    if idle := sorted(set(left_out) - asked):
        raise bad("left_out", ", ".join(idle), "requirements that a wheel has and that nothing else meets")


def _need(of: str, requirement: Requirement, versions: Mapping[str, str], ours: set[str], left_out) -> Need:
    name = canonicalize_name(requirement.name)
    text = f"{name}{requirement.specifier}"
    version = versions.get(name)
    fits = version is not None and (not version or requirement.specifier.contains(version, prereleases=True))
    if fits:
        return Need(of, text, "bundle" if name in ours else "node", version or "version unknown")
    if name in left_out:
        return Need(of, text, "left out", left_out[name])
    return Need(of, text, None, f"there is {version}" if version else "missing")


def _environment(python: str) -> dict[str, str]:
    """The target's marker variables; this machine's own where they do not differ between Linux machines."""
    return default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "extra": "",
    }
