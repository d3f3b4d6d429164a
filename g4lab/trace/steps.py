"""Forward passes in a trace, and the phase that each belongs to.

SGLang names every forward pass in its profiles "step[EXTEND bs=2 toks=512]", "step[DECODE bs=8]", "step[VERIFY bs=8]",
"step[DRAFT bs=8]", and may add sums of query and key counts ("g_sq=32 ..."); g4lab's own captures use the same names.
Elsewhere PyTorch's "ProfilerStep#7" separates steps without naming a phase.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from g4lab.trace.model import frame
from g4lab.trace.nesting import Nesting

if TYPE_CHECKING:
    import pandas as pd

# A mixed step computes prompts with decode tokens riding along; its cost is that of prefill.
PHASE_OF = {
    "EXTEND": "prefill",
    "MIXED": "prefill",
    "SPLIT_PREFILL": "prefill",
    "DLLM_EXTEND": "prefill",
    "DECODE": "decode",
    "VERIFY": "verify",
    "TARGET_VERIFY": "verify",
    "DRAFT": "draft",
    "DRAFT_EXTEND": "draft",
    "DRAFT_EXTEND_V2": "draft",
    "IDLE": "idle",
}
_STEP = re.compile(r"step\[(?P<stage>\w+)(?: bs=(?P<batch>\d+))?(?: toks=(?P<tokens>\d+))?(?P<rest>[^\]]*)\]")
_SUMMED = re.compile(r"\b[cg]_sq=(\d+)")
_PROFILER = re.compile(r"ProfilerStep#\d+")


def parse_step(name: str) -> tuple[str, int, int] | None:
    """(phase, sequences, tokens) that an annotation's name tells, -1 for an unknown count; None for another annotation.

    A decode step computes one token per sequence; of a verify or draft step the tokens are known only where the name
    carries their sum.
    """
    found = _STEP.fullmatch(name)
    if not found:
        return ("unknown", -1, -1) if _PROFILER.fullmatch(name) else None
    phase = PHASE_OF.get(found["stage"], "unknown")
    batch = int(found["batch"] or -1)
    summed = sum(map(int, _SUMMED.findall(found["rest"])))
    tokens = int(found["tokens"] or summed or (batch if phase == "decode" else -1))
    return phase, batch, tokens


def find_steps(annotations: pd.DataFrame) -> pd.DataFrame:
    """The table of steps from the table of annotations. Profiler steps count only in captures without named ones."""
    parsed = {name: parse_step(name) for name in annotations["name"].cat.categories}
    found = annotations[annotations["name"].map(lambda name: parsed[name] is not None).astype(bool)]
    named = found["name"].astype(str).str.startswith("step[")
    found = found[named | ~found["capture"].isin(found.loc[named, "capture"])].sort_values(["capture", "ts_us"])
    columns = {key: found[key].to_numpy() for key in ("ts_us", "dur_us", "pid", "tid", "capture")}
    columns["name"] = names = found["name"].astype(str).to_numpy()
    for place, key in enumerate(("phase", "batch", "tokens")):
        columns[key] = [parsed[name][place] for name in names]
    return frame("steps", columns)


def assign(moment: np.ndarray, capture: np.ndarray, steps: pd.DataFrame, stages: list[str]) -> dict[str, np.ndarray]:
    """Columns `step` and `phase` for events at `moment` [n] µs of `capture` [n].

    The innermost step around the moment counts, on whichever thread it was (a backward pass has a thread of its own).
    In a capture without any step the phase is what its file name says (`stages`, by capture: EXTEND, DECODE or "").
    """
    nesting = Nesting(steps["ts_us"].to_numpy(), steps["dur_us"].to_numpy(), steps["capture"].to_numpy())
    step = nesting.innermost(moment, capture)
    phases = np.append(steps["phase"].astype(str).to_numpy(dtype=object), "unknown")
    phase = phases[step]  # -1 takes the last
    for index, stage in enumerate(stages):
        if stage in PHASE_OF and not (steps["capture"] == index).any():
            phase[capture == index] = PHASE_OF[stage]
    return {"step": step, "phase": phase}
