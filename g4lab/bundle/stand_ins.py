"""One small wheel of modules that SGLang imports and, as it is started there, does not call: each name raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import g4lab
from g4lab.bundle import wheels

NAME = "g4lab-stand-ins"
_SOURCE = '''"""Stands in for {module}: what is called raises."""


def _missing(name):
    def call(*args, **kwargs):
        raise RuntimeError(f"{module}.{{name}} was called, but {package} is not in this bundle")

    return call


{names}
'''


def make_wheel(stand_ins: Mapping[str, Sequence[str]], folder: Path) -> Path:
    """Write the wheel for `stand_ins` (module -> names) into `folder`; a package and its modules must all be listed."""
    packages = {module for module in stand_ins if "." not in module}
    files = [(_path(module, packages), _source(module, names), False) for module, names in stand_ins.items()]
    stem = f"{NAME.replace('-', '_')}-{g4lab.__version__}"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {g4lab.__version__}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: g4lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files += [(f"{stem}.dist-info/{name}", text.encode(), False) for name, text in about.items()]
    return wheels.write(folder / f"{stem}-py3-none-any.whl", files)


def _path(module: str, packages: set[str]) -> str:
    return f"{module}/__init__.py" if module in packages else f"{module.replace('.', '/')}.py"


def _source(module: str, names: Sequence[str]) -> bytes:
    lines = "\n".join(f'{name} = _missing("{name}")' for name in names)
    return _SOURCE.format(module=module, package=module.split(".")[0], names=lines).encode()
