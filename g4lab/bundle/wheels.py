"""Wheels read and written: metadata, the same bytes for the same content, and copies without the parts nobody needs."""

from __future__ import annotations

import base64
import csv
import email
import fnmatch
import hashlib
import io
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from g4lab.errors import Unavailable, bad

EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: the earliest time a zip can hold
_EXECUTABLE = 0o755


@dataclass(frozen=True)
class Metadata:
    """A wheel's name (canonical), version and requirements, as its METADATA has them."""

    name: str
    version: Version
    requires: tuple[Requirement, ...]


@dataclass(frozen=True)
class Cut:
    """What was taken out of a wheel: how many files, whether also debug data; bytes before and after."""

    files_dropped: int
    stripped: bool
    bytes_before: int
    bytes_after: int


def metadata(wheel: Path) -> Metadata:
    """Read a wheel's METADATA. Raises BadInput for a file that is no wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            fields = email.message_from_bytes(archive.read(name))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise bad("wheel", str(wheel), f"a wheel with one METADATA ({error})") from error
    requires = tuple(Requirement(text) for text in fields.get_all("Requires-Dist", []))
    return Metadata(canonicalize_name(fields["Name"]), Version(fields["Version"]), requires)


def slim(wheel: Path, folder: Path, drop: Iterable[str] = (), strip: bool = False) -> tuple[Path, Cut]:
    """Copy `wheel` to `folder` under its own name, without the files that match a glob of `drop` (`*` crosses slashes).

    Args:
        strip: also take the debug data out of shared objects, with binutils' strip.

    Raises:
        BadInput: a glob that matches nothing (the wheel is not the one the recipe was written for).
        Unavailable: strip is wanted and not installed.
    """
    if strip and not shutil.which("strip"):
        raise Unavailable(f"{wheel.name}: slimming needs binutils' strip, which is not installed")
    unused = set(drop)
    dropped = 0

    def kept() -> Iterator[tuple[str, bytes, bool]]:
        nonlocal dropped
        with zipfile.ZipFile(wheel) as archive:
            for item in archive.infolist():
                if item.is_dir() or item.filename.endswith(".dist-info/RECORD"):
                    continue
                if matched := {glob for glob in drop if fnmatch.fnmatchcase(item.filename, glob)}:
                    unused.difference_update(matched)
                    dropped += 1
                    continue
                content = archive.read(item)
                if strip and item.filename.endswith(".so"):
                    content = _without_debug_data(content)
                yield item.filename, content, bool(item.external_attr >> 16 & 0o100)

    made = write(folder / wheel.name, kept())
    if unused:
        made.unlink()
        raise bad("drop", sorted(unused)[0], f"a glob that matches a file of {wheel.name}")
    return made, Cut(dropped, strip, wheel.stat().st_size, made.stat().st_size)


def write(wheel: Path, files: Iterable[tuple[str, bytes, bool]]) -> Path:
    """Write a wheel of (name, content, executable); its RECORD is made here. The same files give the same bytes."""
    rows = []
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content, executable in sorted(files):
            _add(archive, name, content, executable)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append((name, f"sha256={digest}", len(content)))
        (info,) = {name.split("/")[0] for name, *_ in rows if name.split("/")[0].endswith(".dist-info")}
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
        _add(archive, f"{info}/RECORD", text.getvalue().encode(), False)
    return wheel


def _add(archive: zipfile.ZipFile, name: str, content: bytes, executable: bool) -> None:
    item = zipfile.ZipInfo(name, EPOCH)
    item.external_attr = (_EXECUTABLE if executable else 0o644) << 16
    archive.writestr(item, content, zipfile.ZIP_DEFLATED, 9)


def _without_debug_data(content: bytes) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()
        subprocess.run(["strip", "--strip-debug", file.name], check=True, capture_output=True)
        return Path(file.name).read_bytes()
