"""Names of kernels made short enough to read, and the same for the same kernel across builds."""

from __future__ import annotations

import re

_NAMESPACE = re.compile(r"(?:\w+|\(anonymous namespace\))::")
_SPECIALISATION = re.compile(r"_0(?:d[ec]?|[ec])(?:\d+(?:d[ec]?|[ec])?)*$")
_INDUCTOR = re.compile(r"^(triton_(?:poi|red|per|tem|for|split_scan)_\w+?)_\d+$")


def short(name: str, width: int = 72) -> str:
    """A name for a table or an axis: C++ without return type, namespaces and parameters, cut to `width`."""
    if "<" in name or name.endswith(")"):
        name = _NAMESPACE.sub("", name.removeprefix("void "))
        name = name[: _parameters(name)].strip()
    return name if len(name) <= width else name[: width - 1].rstrip() + "…"


def _parameters(name: str) -> int:
    """Where a C++ name's parameter list begins: a parenthesis at a word's end, outside angle brackets."""
    depth = 0
    for place, sign in enumerate(name):
        if sign == "(" and depth == 0 and place and name[place - 1] != " ":
            return place
        depth += (sign == "<") - (sign == ">")
    return len(name)


def same(name: str) -> str:
    """The part of a name that two builds share.

    Taken off: the return type "void ", blanks between closing brackets, the argument specialisation that Triton once
    appended ("_fwd_kernel_0d1d2de" is "_fwd_kernel"), and the running number of a torch.compile kernel, which shifts
    when a kernel before it comes or goes. Template arguments stay: another tile or dtype is another kernel.
    """
    name = name.removeprefix("void ").replace("> >", ">>").replace("> >", ">>")
    name = _SPECIALISATION.sub("", name)
    found = _INDUCTOR.match(name)
    return found[1] if found else name
