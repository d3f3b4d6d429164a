"""On the node, after installing: is what the bundle was made for really there?"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from g4lab.bundle.closure import needs
from g4lab.bundle.wheels import Metadata


def problems(manifest: Mapping) -> tuple[list[str], list[str]]:
    """Compare a bundle's manifest with this process's environment.

    Returns:
        (lacking, differing): packages and tools that are absent or not the bundle's; and requirements of a carried
        package that a version found here does not fit, though it may work.
    """
    installed = {canonicalize_name(d.name): d.version for d in reversed(list(importlib.metadata.distributions()))}
    lacking, carried = [], []
    for name, version in manifest["packages"].items():
        if installed.get(name) != version:
            lacking.append(f"{name} {version} is not what is imported here: {installed.get(name, 'not installed')}")
        else:
            requires = tuple(map(Requirement, importlib.metadata.requires(name) or ()))
            carried.append(Metadata(name, Version(version), requires))
    unmet = [need for need in needs(carried, installed, manifest["left_out"], manifest["python"]) if not need.met_by]
    lacking += [f"{need.of} needs {need.requirement}" for need in unmet if need.detail == "missing"]
    lacking += [f"no {tool} on the PATH" for tool in manifest["tools"] if not shutil.which(tool)]
    differing = [f"{need.of} asks for {need.requirement}, {need.detail}" for need in unmet if need.detail != "missing"]
    return lacking, differing
