"""Notebooks as batch jobs: which there are, which parameters each declares, and what may run beside what."""

import ast
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4lab import env
from g4lab.errors import BadInput, bad


@dataclass(frozen=True)
class Notebook:
    """One notebook file.

    `exclusive`: it measures time, so nothing may run beside it. `after`: names of notebooks that must have ended
    first. Both come from the notebook's metadata, key "g4lab". `defaults`: its declared parameters, as literals.
    """

    path: Path
    sha: str
    defaults: Mapping[str, Any]
    exclusive: bool = False
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.stem

    def accept(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`parameters`, after checking that the notebook declares each, of the type of its default value."""
        for name, value in parameters.items():
            if name not in self.defaults:
                known = ", ".join(self.defaults) or "none"
                raise BadInput(f"{self.name} has no parameter {name!r}; it declares: {known}")
            default = self.defaults[name]
            if not _fits(value, default):
                raise bad(f"{self.name}: {name}", value, f"a value like its default {default!r}")
        return dict(parameters)


def find(which: Sequence[str] = ()) -> list[Notebook]:
    """The notebooks named (a name such as "10_router", or a file), or all of notebooks/, in reading order.

    Raises:
        BadInput: there is no such notebook, a file is no notebook, or two have one name.
    """
    if which:
        paths = [_path(name) for name in which]
    else:
        paths = [p for p in env.checkout("notebooks").glob("*.ipynb") if not p.name.startswith(".")]
    found = sorted((load(path) for path in set(paths)), key=lambda notebook: notebook.name)
    names = [notebook.name for notebook in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise bad("notebook", ", ".join(sorted(twice)), "one file for each name")
    if not found:
        raise BadInput("notebook: there are none in notebooks/")
    return found


def load(path: Path) -> Notebook:
    """Read one notebook's parameters and metadata. Raises BadInput where the file is no notebook."""
    import papermill

    try:
        content = path.read_bytes()
        metadata = json.loads(content)["metadata"].get("g4lab", {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            declared = papermill.inspect_notebook(str(path))
    except Exception as error:  # whatever the JSON, nbformat or papermill found wrong with it
        raise BadInput(
            f"notebook {path}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
    return Notebook(
        path=path.resolve(),
        sha=hashlib.sha256(content).hexdigest(),
        defaults={name: _literal(found["default"]) for name, found in declared.items()},
        exclusive=bool(metadata.get("exclusive", False)),
        after=tuple(metadata.get("after", ())),
    )


def parameters_for(
    notebooks: Iterable[Notebook], profile: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Each notebook's parameters: the profile's, overridden by `given` wherever the notebook declares that name.

    Raises:
        BadInput: the profile names a notebook or parameter that does not exist, or no notebook declares a given name.
    """
    notebooks = list(notebooks)
    for name in profile.keys() - {notebook.name for notebook in notebooks}:
        if not (notebooks[0].path.parent / f"{name}.ipynb").exists():
            raise bad("profile: parameters", name, "the name of a notebook beside " + notebooks[0].path.name)
    for name in given:
        if not any(name in notebook.defaults for notebook in notebooks):
            known = sorted({name for notebook in notebooks for name in notebook.defaults})
            raise bad("-p", name, "a parameter that one of the notebooks declares: " + ", ".join(known))
    return {
        n.name: n.accept({**profile.get(n.name, {}), **{k: v for k, v in given.items() if k in n.defaults}})
        for n in notebooks
    }


def _path(name: str) -> Path:
    path = Path(name) if name.endswith(".ipynb") else env.checkout("notebooks") / f"{name}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb"))) or "none there"
        raise bad("notebook", name, f"a notebook file or one of: {known}")
    return path.resolve()


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None  # an expression such as float("inf"): any value is accepted


def _fits(value: Any, default: Any) -> bool:
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))
