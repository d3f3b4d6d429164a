"""Claims and features as checked YAML: what is claimed, and what each pull request behind the project became here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from g4lab import env, records
from g4lab.errors import BadInput, bad
from g4lab.patches import REGISTRY
from g4lab.published import published, tables

State = Literal["proven", "refuted", "not measured"]
SAME = "the same"  # on a GPU as on a CPU: nothing in the claim depends on the machine
NOT_MEASURED = "not measured yet"
OWN = "own"  # instead of a pull request


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Proof(_Checked):
    """How one kind of machine decides a claim.

    how: the method in words; command: reproduces it; evidence: test nodes ("tests/test_x.py::test_y") and notebooks
    ("notebooks/10_router.ipynb"); interval: the uncertainty ("exact", "error budget", "95 % over rounds"); steps: of
    `g4lab campaign` that settle what is not measured.
    """

    state: State
    command: str = Field(min_length=1)
    how: str = ""
    evidence: tuple[str, ...] = ()
    interval: str = ""
    steps: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _measured_or_not(self) -> Proof:
        if self.state == "not measured":
            if self.interval:
                raise ValueError("interval: what is not measured has none")
            return self
        if self.steps:
            raise ValueError("steps: only what is not measured waits for a campaign")
        missing = [name for name in ("how", "evidence", "interval") if not getattr(self, name)]
        if missing:
            raise ValueError(f"what is {self.state} needs {', '.join(missing)}")
        return self


class Rows(_Checked):
    """Rows of a published table: those whose case and metric begin so."""

    table: str
    case: str = ""
    metric: str = ""

    @model_validator(mode="after")
    def _there(self) -> Rows:
        if self.table not in tables():
            raise ValueError(f"table {self.table!r}, expected one of {', '.join(tables())}")
        if self.frame().empty:
            raise ValueError(f"no row of {self.table} has case {self.case!r} and metric {self.metric!r}")
        return self

    def frame(self):
        """The rows, with published.COLUMNS."""
        frame = published(self.table)
        return frame[frame["case"].str.startswith(self.case) & frame["metric"].str.startswith(self.metric)]


class Claim(_Checked):
    """One statement. kind: where its figures are from when they are shown; peer: what stands beside it.

    cpu: None where a CPU cannot say. gpu: "the same" where the machine does not matter. record: name of the record
    that a `recorded` claim rests on; published: the rows that a `published` one quotes. headline: stands in README.
    """

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    room: str = Field(min_length=1)
    claim: str = Field(min_length=1)
    kind: records.Kind
    peer: str = Field(min_length=1)
    cpu: Proof | None = None
    gpu: Proof | Literal["the same"]
    record: str | None = None
    published: Rows | None = None
    headline: bool = False

    @model_validator(mode="after")
    def _rests_on_something(self) -> Claim:
        if self.cpu is None and self.gpu == SAME:
            raise ValueError("no command: neither cpu nor gpu says how it is decided")
        if self.kind == "recorded" and self.record is None:
            raise ValueError("record: a recorded claim names its record")
        if self.kind == "published" and self.published is None:
            raise ValueError("published: a published claim names its table")
        if self.record is not None and not _committed(self.record):
            raise ValueError(f"record: {self.record!r} is not in data/records")
        return self

    @property
    def proofs(self) -> dict[str, Proof]:
        """ "CPU" and "GPU" -> proof, of those that there are."""
        found = {"CPU": self.cpu, "GPU": self.gpu}
        return {place: proof for place, proof in found.items() if isinstance(proof, Proof)}


class Feature(_Checked):
    """What one part of a pull request did, and what stands for it here. has: in words; patches, kernels (modules of
    g4lab.kernels), notebooks and commands: where to find it; claims: ids. gap: what is left out, and why."""

    pull: str = Field(pattern=rf"^(sgl-project|pyc96)/sglang#\d+$|^{OWN}$")
    did: str = ""
    has: str = Field(min_length=1)
    patches: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    notebooks: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    gap: str = ""

    @model_validator(mode="after")
    def _there(self) -> Feature:
        unknown = [name for name in self.patches if name not in REGISTRY]
        unknown += [name for name in self.kernels if not (Path(__file__).parents[1] / f"kernels/{name}.py").exists()]
        unknown += [name for name in self.notebooks if not (env.checkout("notebooks") / f"{name}.ipynb").exists()]
        if unknown:
            raise ValueError(f"no such patch, kernel or notebook: {', '.join(unknown)}")
        if (self.pull == OWN) != (not self.did):
            raise ValueError("did: a pull request did something; what is our own has none")
        if not self.claims and not self.gap:
            raise ValueError("claims: a feature has claims, or says in gap why it has none")
        return self


class Book(_Checked):
    """All claims and features; every claim belongs to a feature."""

    claims: tuple[Claim, ...]
    features: tuple[Feature, ...]

    @model_validator(mode="after")
    def _fit(self) -> Book:
        ids = [claim.id for claim in self.claims]
        named = {id for feature in self.features for id in feature.claims}
        faults = {
            "twice": {id for id in ids if ids.count(id) > 1},
            "of a feature, but no claim": named - set(ids),
            "of no feature": set(ids) - named,
        }
        for what, found in faults.items():
            if found:
                raise ValueError(f"claim {what}: {', '.join(sorted(found))}")
        return self

    def __getitem__(self, id: str) -> Claim:
        for claim in self.claims:
            if claim.id == id:
                return claim
        raise bad("claim", id, "one of " + ", ".join(claim.id for claim in self.claims))

    def pulls_of(self, claim: Claim) -> tuple[str, ...]:
        """The pull requests whose features name the claim, "own" among them."""
        return tuple(dict.fromkeys(feature.pull for feature in self.features if claim.id in feature.claims))


def load(folder: Path | None = None) -> Book:
    """claims.yaml and features.yaml of `folder` (default: the checkout's data/), checked.

    Raises:
        BadInput: not YAML or not the schema: names the file, the claim or feature, and the first fault. Unavailable:
            g4lab is installed without its checkout.
    """
    folder = folder or env.data_dir()
    claims = _read(folder / "claims.yaml", Claim, "id")
    features = _read(folder / "features.yaml", Feature, "pull")
    try:
        return Book(claims=claims, features=features)
    except ValidationError as error:
        raise BadInput(f"{folder}: {_first(error)}") from None


def _read(path: Path, of: type[_Checked], name: str) -> tuple:
    try:
        rows = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{path}: expected a list of mappings")
    made, check = [], TypeAdapter(of)
    for number, row in enumerate(rows, start=1):
        try:
            made.append(check.validate_python(row))
        except ValidationError as error:
            raise BadInput(f"{path}: {number}, {row.get(name, f'without {name}')}: {_first(error)}") from None
    return tuple(made)


def _committed(record: str) -> bool:
    return any((env.data_dir() / "records").glob(f"*/{record}.jsonl"))


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")]))
