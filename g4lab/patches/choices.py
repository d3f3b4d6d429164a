"""What the patches with a kernel share: a choice made by an environment variable, and where kernels can run."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from g4lab import env
from g4lab.patches.registry import Device


def needs_interpreter(device: Device) -> str | None:
    """Why a patch's Triton kernel cannot run on `device` in this process, or None."""
    if device == "cpu" and not env.interpreting():
        return "on a CPU its Triton kernel runs in the interpreter only: set TRITON_INTERPRET=1"
    return None


@functools.cache
def _chosen(variable: str) -> str | None:
    return os.environ.get(variable)


@dataclass(frozen=True)
class Choice:
    """The named rounding, or table of tiles, that a patch's kernel takes: $`variable`, read once for each process; the
    first name stands where it is unset or empty."""

    variable: str
    names: tuple[str, ...]

    def __call__(self) -> str:
        return _chosen(self.variable) or self.names[0]

    def declines(self, device: Device) -> str | None:
        """Why a patch with this choice cannot work in this process on `device`, or None."""
        if self() not in self.names:
            return f"{self.variable} is {self()!r}, expected {' or '.join(self.names)}"
        return needs_interpreter(device)


def forget() -> None:
    """Read the variables again at the next call, for tests."""
    _chosen.cache_clear()
