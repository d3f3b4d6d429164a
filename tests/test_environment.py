"""The lock, pyproject.toml and environment.yml describe one environment, and this process runs in it."""

import importlib.metadata as metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)={2,3}([^\s;]+)", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(m[1]): m[2] for m in matches}


LOCK = pins()
DECLARED = [
    Requirement(r)
    for r in [*PROJECT["dependencies"], *(r for e in PROJECT["optional-dependencies"].values() for r in e)]
]


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_every_declared_dependency_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_this_environment_is_the_lock():
    installed = {name: metadata.version(name) for name in LOCK}
    assert installed == LOCK


def test_lock_is_closed_but_for_what_only_sglang_wants():
    """pip installs the lock with --no-deps, so a missing dependency would show only when it is imported."""
    missing = {}
    for name in set(LOCK) - {"sglang"}:
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and canonicalize_name(
                need.name
            ) not in LOCK:
                missing.setdefault(name, []).append(text)
    assert not missing


def test_lock_agrees_with_sglang_where_both_name_a_package():
    """On a GPU machine SGLang's full list is resolved under the lock's constraints: a conflict would break it there."""
    needs = [Requirement(text) for text in metadata.requires("sglang")]
    conflicts = [
        str(need)
        for need in needs
        if (need.marker is None or need.marker.evaluate({"extra": ""}))
        and canonicalize_name(need.name) in LOCK
        and not need.specifier.contains(Version(LOCK[canonicalize_name(need.name)]), prereleases=True)
    ]
    assert not conflicts


def test_conda_environment_takes_its_versions_from_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in conda if isinstance(entry, dict))
    assert pip[0] == "-c requirements.lock"
    (project,) = pip[1:]
    extras = re.fullmatch(r"-e \.\[(.+)\]", project)[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"])
    (python,) = (entry for entry in conda if isinstance(entry, str) and entry.startswith("python="))
    assert Requirement("python" + PROJECT["requires-python"]).specifier.contains(python.removeprefix("python="))


def test_torch_is_pinned_as_the_cuda_build():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"torch==={LOCK['torch']}" in lines
