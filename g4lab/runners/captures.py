"""A finished capture: whole, without the names of the machine it was made on, and with a note of what made it."""

from __future__ import annotations

import datetime
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g4lab import env
from g4lab.errors import bad

PHASES = ("prefill", "decode")
END = ".trace.json.gz"
# PyTorch writes the temporary file it exported to and the host's name; neither says anything of the run.
_NAMES = re.compile(rb'("(?:traceName|host_name)"\s*:\s*)"[^"]*"')


def check(phase: str, **counts: int) -> None:
    """Raise BadInput for an unknown phase or a count below 1."""
    if phase not in PHASES:
        raise bad("phase", phase, " or ".join(PHASES))
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise bad(name, value, "a whole number above 0")


def stem(model: str, phase: str, batch: int, prompt_len: int, patches: str) -> str:
    """The name of a capture, such as "tiny-moe-decode-bs8-len128-router"."""
    return f"{model}-{phase}-bs{batch}-len{prompt_len}-{patches.replace(',', '+')}"


def inflate(file: Path) -> bytes | None:
    """What a .gz file holds; None while its end is missing, as in one still being written, or empty."""
    try:
        return gzip.decompress(file.read_bytes()) or None
    except (EOFError, gzip.BadGzipFile, zlib.error, FileNotFoundError):
        return None


def publish(trace: bytes, file: Path) -> None:
    """Write a JSON trace to the .gz `file`, without the names of host and temporary file, at once or not at all."""
    env.atomic_write(file, gzip.compress(_NAMES.sub(rb'\1""', trace), 6, mtime=0))


def provenance(file: Path, parameters: Mapping[str, Any], **more: Any) -> None:
    """Write beside a capture what made it: parameters, machine, package versions, commit, and `more`."""
    commit, modified = env.commit()
    said = {
        "parameters": dict(parameters),
        "machine": env.machine(),
        "versions": env.versions(),
        "commit": commit,
        "modified": modified,
        "captured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **more,
    }
    env.atomic_write(file, json.dumps(said, indent=1) + "\n")
