"""Files packed first-fit into tar archives of a limited size; what fits in none is split into parts."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from g4lab.errors import bad

MIN_LIMIT = 2**20
_END = tarfile.RECORDSIZE  # an archive is filled up to a multiple of it
_HEADER = 3 * tarfile.BLOCKSIZE  # of a member: its own, and two where the name is long


@dataclass(frozen=True)
class Piece:
    """`size` bytes of the file `path` from `offset` on, as the member `name`."""

    name: str
    path: Path
    offset: int
    size: int

    @property
    def room(self) -> int:
        """Bytes it takes in an archive, at most."""
        return _HEADER + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@dataclass
class Parcel:
    """An archive's name and what is in it."""

    name: str
    pieces: list[Piece] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Bytes its pieces take, at most."""
        return sum(piece.room for piece in self.pieces)


def check_limit(limit: int) -> None:
    """Raise BadInput for a limit, in bytes, below 1 MiB."""
    if limit < MIN_LIMIT:
        raise bad("limit", limit, f"at least {MIN_LIMIT} bytes")


def plan(files: Mapping[str, Path], limit: int) -> list[Parcel]:
    """Place `files` (member name -> path), largest first, each in the first archive with room for it.

    A file larger than `limit` bytes becomes NAME.part-001, NAME.part-002 and so on.

    Raises:
        BadInput: a limit below 1 MiB.
    """
    check_limit(limit)
    capacity = limit - _END
    pieces = [piece for name in sorted(files) for piece in _pieces(name, files[name], capacity)]
    parcels: list[Parcel] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.size, piece.name)):
        parcel = next((p for p in parcels if p.room + piece.room <= capacity), None)
        if parcel is None:
            parcels.append(parcel := Parcel(f"parcel-{len(parcels) + 1:02}.tar"))
        parcel.pieces.append(piece)
    return parcels


def write(parcel: Parcel, folder: Path) -> Path:
    """Write the archive into `folder`. The same pieces give the same bytes: no times, owners or umask."""
    path = folder / parcel.name
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for piece in sorted(parcel.pieces, key=lambda piece: piece.name):
            member = tarfile.TarInfo(piece.name)
            member.size = piece.size
            with open(piece.path, "rb") as file:
                file.seek(piece.offset)
                archive.addfile(member, file)
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pieces(name: str, path: Path, capacity: int) -> list[Piece]:
    size = path.stat().st_size
    largest = (capacity - _HEADER) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    if size <= largest:
        return [Piece(name, path, 0, size)]
    starts = range(0, size, largest)
    return [Piece(f"{name}.part-{n:03}", path, at, min(largest, size - at)) for n, at in enumerate(starts, 1)]
