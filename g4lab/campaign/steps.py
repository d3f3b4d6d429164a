"""The steps of a campaign as data: what each proves, costs and needs, its command, and its twin for a dry run."""

import importlib.util
import shlex
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from string import Template
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from g4lab import env, records
from g4lab.errors import BadInput, bad

DURATION = "campaign.step"  # the record that a step done leaves of itself
GRACE_S = 60  # of a step's time limit, beside twice its cost

Need = Literal["gpu", "sglang", "sgl_kernel", "tests", "notebooks"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Twin(_Strict):
    """The step at tiny size, for a dry run.

    command: default the step's own. stops_with: on a machine without a GPU it ends with this in its last line. reason:
    why there is no twin; the step's command is then only parsed.
    """

    command: str | None = None
    seconds: PositiveFloat = 2
    stops_with: str | None = None
    reason: str | None = None


class Step(_Strict):
    """One step. The order of the table is the order of worth.

    seconds: what it is estimated to take on the target, until a campaign has measured it. after: steps that must have
    been done before, because this one's figures mean nothing without. leaves: names of the records without which it is
    not done ("a|b": one of them). headline: a regular expression; the last line of
    the log that it finds is the step's result in a line.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    stage: str
    proves: str
    seconds: PositiveFloat
    needs: tuple[Need, ...] = ()
    memory_gb: float = 0
    after: tuple[str, ...] = ()
    command: str
    twin: Twin
    leaves: tuple[str, ...] = ()
    headline: str = ""

    def argv(self, folder: Path, twin: bool = False) -> list[str]:
        """The command as words, its first "g4lab" or "python"; $folder stands for `folder`."""
        text = (self.twin.command if twin else None) or self.command
        return [Template(word).substitute(folder=str(folder)) for word in shlex.split(text)]

    def lacking(self) -> str:
        """What this machine does not have and the step needs, in words; empty where nothing is missing."""
        found = [words for need in self.needs if (words := _lacking(need))]
        gpus = env.machine()["gpus"]
        if self.memory_gb and gpus and gpus[0]["memory_gb"] < self.memory_gb:
            found.append(f"{self.memory_gb:g} GB of GPU memory, this one has {gpus[0]['memory_gb']:g}")
        return "; ".join(found)


class Table(_Strict):
    """A table of steps for one kind of machine, and the values that its commands share."""

    name: str
    machine: str
    values: dict[str, str] = {}
    steps: tuple[Step, ...]

    @model_validator(mode="after")
    def _order(self) -> "Table":
        seen: set[str] = set()
        for step in self.steps:
            if step.name in seen:
                raise ValueError(f"two steps are named {step.name}")
            if unknown := set(step.after) - seen:
                raise ValueError(f"{step.name} comes after {', '.join(sorted(unknown))}, not a step before it")
            for text in (step.command, step.twin.command or "g4lab"):
                if text.split()[0] not in ("g4lab", "python"):
                    raise ValueError(f"{step.name}: a command begins with g4lab or python, not {text.split()[0]}")
            seen.add(step.name)
        return self


class Cost(NamedTuple):
    """Seconds of a step on this machine, and where the number is from."""

    seconds: float
    source: str


def load_table(which: str = "h200") -> Table:
    """The table of that name beside this file, or of that YAML file.

    A step with `each: [a, b]` stands for one step for each, with $each in its texts; values take their places too.

    Raises:
        BadInput: no such table, not YAML, or not the schema: names the file and the first fault.
    """
    path = Path(which)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(__file__).parent / f"{which}.yaml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise bad("profile", which, f"{known}, or a YAML file of steps")
    try:
        content = yaml.safe_load(path.read_text())
        values = content.get("values", {})
        content["steps"] = [each for step in content["steps"] for each in _expanded(step, values)]
        return Table.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"campaign {path}: {where}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise BadInput(f"campaign {path}: cannot be read: {' '.join(str(error).split())}") from None


def select(table: Table, only: Sequence[str] = ()) -> list[str]:
    """Names of the steps that `only` names, by name, stage or pattern ("bench-*"), in the table's order; () means all.

    Raises BadInput for one that names nothing.
    """
    for wanted in only:
        if not any(fnmatch(step.name, wanted) or step.stage == wanted for step in table.steps):
            known = ", ".join(dict.fromkeys([step.stage for step in table.steps] + [s.name for s in table.steps]))
            raise bad("--only", wanted, f"a step or stage: {known}")
    return [
        step.name
        for step in table.steps
        if not only or any(fnmatch(step.name, wanted) or step.stage == wanted for wanted in only)
    ]


def costs(steps: Iterable[Step], folders: Iterable[Path] = ()) -> dict[str, Cost]:
    """What each step takes on this machine: as an earlier campaign measured the same command on such a GPU, if one has
    left records in `folders`, else as the table estimates."""
    found = {step.name: Cost(step.seconds, "estimate") for step in steps}
    commands, here = {step.name: step.command for step in steps}, _where()
    for folder in folders:
        for file in sorted(folder.rglob(f"{DURATION}.jsonl")) if folder.is_dir() else []:
            for record in records.read(file).records:
                name = record.parameters["step"]
                if record.where == here and commands.get(name) == record.parameters["command"]:
                    found[name] = Cost(record.values["seconds"], f"measured {record.time:%Y-%m-%d}")
    return found


def duration(step: Step, seconds: float) -> records.Record:
    """The record of what a step took."""
    return records.new_record(DURATION, {"seconds": round(seconds, 1)}, {"step": step.name, "command": step.command})


def limit(cost: Cost) -> float:
    """After how many seconds a step of this cost is stopped."""
    return 2 * cost.seconds + GRACE_S


def _where() -> str:
    machine = env.machine()
    return machine["gpus"][0]["name"] if machine["gpus"] else f"{machine['cpu']}, {machine['cores']} cores"


def _expanded(step: dict, values: Mapping[str, str]) -> Iterable[dict]:
    for each in step.pop("each", [None]):
        names = dict(values) | ({} if each is None else {"each": each})
        yield _filled(step, names)


def _filled(value, names: Mapping[str, str]):
    if isinstance(value, str):
        return Template(value).safe_substitute(names)  # $folder stays until the step runs
    if isinstance(value, dict):
        return {key: _filled(inner, names) for key, inner in value.items()}
    return [_filled(inner, names) for inner in value] if isinstance(value, list) else value


def _lacking(need: Need) -> str:
    if need == "gpu":
        return "" if env.has_gpu() else "a CUDA GPU"
    if need in ("tests", "notebooks"):
        return "" if (Path(env.__file__).parent.parent / need).is_dir() else f"a checkout's {need}/"
    return "" if importlib.util.find_spec(need) else f"{need}, which is not installed"
