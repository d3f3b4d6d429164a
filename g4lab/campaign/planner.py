"""Which steps a budget of time is spent on: in order of worth, each that still fits."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from g4lab.campaign.steps import Cost, Step


class Plan(NamedTuple):
    """Names of the steps to run, in order, and of the others why not."""

    taken: list[str]
    left_out: dict[str, str]


def plan(
    steps: Sequence[Step], costs: Mapping[str, Cost], budget_s: float, *, done: Collection[str] = (),
    refused: Collection[str] = (),
) -> Plan:  # fmt: skip
    """Take each step that the budget still holds, the most worth first; a smaller one behind one that does not fit may.

    Args:
        steps: in order of worth. done: those that need no more, because they are done or cannot be had
            here. refused: those that have failed.

    A step that comes after one of `steps` is taken only if that one is done or taken.
    """
    left, ready, names = budget_s, set(done), {step.name for step in steps}
    taken, left_out = [], {}
    for step in steps:
        if step.name in done or step.name in refused:
            continue
        seconds = costs[step.name].seconds
        missing = [name for name in step.after if name in names and name not in ready]
        if missing:
            left_out[step.name] = f"not without {', '.join(missing)}"
        elif seconds > left:
            left_out[step.name] = f"takes {seconds:.0f} s, {max(left, 0):.0f} s are left"
        else:
            taken.append(step.name)
            ready.add(step.name)
            left -= seconds
    return Plan(taken, left_out)
