"""Append-only results with provenance: one JSON object a line, checked on the way in and on the way out.

A record that was measured in this run is `live`; the same record read back from the committed data/ folder is
`recorded`; a number from a cited source is `published`. Nothing here imports torch.
"""

import fcntl
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from g4lab import env
from g4lab.errors import Unavailable, bad

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
Kind = Literal["live", "recorded", "published"]
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_COLUMNS = ("id", "time", "kind", "name", "machine", "commit", "dirty")
_TAG = "$float"  # JSON has no NaN or infinity, so {"$float": "nan"} stands for one


class Record(BaseModel):
    """One result: what was measured (`values`), under which `parameters`, where, when and with which code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str = Field(min_length=1)
    time: AwareDatetime
    kind: Kind
    name: Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
    machine: dict[str, JsonValue]
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool
    parameters: dict[str, JsonValue]
    values: dict[str, JsonValue]

    @model_validator(mode="after")
    def _keys_are_columns(self) -> "Record":
        used = self.parameters.keys() | self.values.keys()
        twice = sorted((self.parameters.keys() & self.values.keys()) | (used & set(_COLUMNS)))
        if twice:
            raise ValueError(f"a table of records would have two columns of the name {', '.join(twice)}")
        return self

    @property
    def where(self) -> str:
        """The machine in words, for a figure's provenance badge."""
        gpus = self.machine.get("gpus") or []
        return gpus[0]["name"] if gpus else f"{self.machine.get('cpu')}, {self.machine.get('cores')} cores"


class Problem(NamedTuple):
    """A line that could not be read as a record."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class RecordFile(NamedTuple):
    """What `read` found: the records in file order, and every line that is none."""

    records: list[Record]
    problems: list[Problem]


def new_record(name: str, values: Mapping, parameters: Mapping | None = None, kind: Kind = "live") -> Record:
    """A record of this moment, machine, versions and commit.

    Args:
        name: what was measured, lower case ("router", "serving.ab"); also the stem of the default file.
        values: measured figures, units in their names ("median_us"); numbers, text, lists and dicts of them. NumPy
            and torch scalars become plain numbers; NaN and infinities are kept.
        parameters: the conditions. A key may not stand in `values` too: both become columns of one table.

    Raises:
        BadInput: a name, kind or value that the schema does not allow.
    """
    commit, dirty = env.commit()
    try:
        return Record(
            id=uuid.uuid4().hex,
            time=datetime.now(UTC),
            kind=kind,
            name=name,
            machine=env.machine(),
            versions=env.versions(),
            commit=commit,
            dirty=dirty,
            parameters=_plain(parameters or {}, "parameters"),
            values=_plain(values, "values"),
        )
    except ValidationError as error:
        raise bad("record", name, _first_reason(error)) from None


def append(record: Record, path: Path | str | None = None) -> Path:
    """Add one line to `path` (default: `<name>.jsonl` in `where()`) and return the path.

    The line is written by one call under the file's lock and synced, so processes that append at the same time lose
    nothing; a line that an earlier writer left unfinished is closed first. A full disk leaves the file as it was.
    """
    path = Path(path) if path is not None else where() / f"{record.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = to_json(record).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(handle, line) != len(line):
            os.ftruncate(handle, size)
            raise Unavailable(f"no room to append a record to {path}")
        os.fsync(handle)
    finally:
        os.close(handle)
    return path


def read(path: Path | str | None = None) -> RecordFile:
    """Every record of a file, or of all *.jsonl files below a folder (default: `where()`).

    Lines that are cut, not JSON or off the schema are reported and the rest still read. Records below the
    checkout's data/ folder show as `recorded`, whatever they were when written.

    Raises:
        BadInput: there is no such file or folder.
    """
    path = Path(path) if path is not None else where()
    if not path.exists():
        raise bad("path", str(path), "a file or folder of records")
    found = RecordFile([], [])
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        committed = _is_committed(file)
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = from_json(line)
            except ValueError as error:
                found.problems.append(Problem(file, number, str(error)))
            else:
                live = record.kind == "live"
                found.records.append(record.model_copy(update={"kind": "recorded"}) if committed and live else record)
    return found


def to_json(record: Record) -> str:
    """The record as one line of strict JSON, without the line's end."""
    fields = record.model_dump(mode="python")
    fields["time"] = record.time.isoformat()
    return json.dumps(_tag(fields), ensure_ascii=False, allow_nan=False)


def from_json(line: bytes | str) -> Record:
    """The record of one line. Raises ValueError with a one-line reason."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
        fields = json.loads(text, object_hook=_untag)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"cut or not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    if fields.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version {fields.get('schema_version')!r}, this g4lab reads {SCHEMA_VERSION}")
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        raise ValueError(_first_reason(error)) from None


def to_frame(records: Iterable[Record]) -> "pd.DataFrame":
    """One row a record: id, time, kind, name, machine, commit, dirty, then every parameter and value as a column."""
    import pandas as pd

    rows = [
        dict(zip(_COLUMNS, (r.id, r.time, r.kind, r.name, r.where, r.commit, r.dirty), strict=True))
        | r.parameters
        | r.values
        for r in records
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(_COLUMNS))


def where() -> Path:
    """Folder that new records go to: $G4LAB_RECORDS (set by `g4lab run`), else records/ among the runs."""
    chosen = os.environ.get("G4LAB_RECORDS")
    return Path(chosen) if chosen else runs_dir() / "records"


def runs_dir() -> Path:
    """runs/ of the checkout, or of the working folder where g4lab is installed without one."""
    try:
        return env.data_dir().parent / "runs"
    except Unavailable:
        return Path.cwd() / "runs"


def committed_dir(machine: str | None = None) -> Path:
    """data/records/<machine> of the checkout; `machine` defaults to this one's short name."""
    return env.data_dir() / "records" / (machine or env.machine_name())


def _is_committed(file: Path) -> bool:
    try:
        return file.resolve().is_relative_to(env.data_dir().resolve())
    except Unavailable:
        return False


def _first_reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return " ".join([".".join(map(str, first["loc"])), first["msg"]]).strip()


def _plain(value: Any, name: str) -> Any:
    """`value` as plain JSON types; NumPy and torch scalars and arrays by their own item() and tolist()."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name)
    raise bad(name, value, "a number, text, None, or lists and dicts of them")


def _tag(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: repr(value)}
    if isinstance(value, dict):
        return {key: _tag(inner) for key, inner in value.items()}
    return [_tag(inner) for inner in value] if isinstance(value, list) else value


def _untag(fields: dict) -> Any:
    return float(fields[_TAG]) if fields.keys() == {_TAG} else fields
