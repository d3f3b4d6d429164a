"""Which family a GPU kernel or a CPU operator belongs to, by its name alone; the rules are families.csv.

Beside the families of an MoE decoder's layers (attention, GEMMs, routing, norm, rope, KV write, all-reduce, sampling,
copy) real traces need: MoE combine (the weighted sum of the experts' outputs), activation, quantization, elementwise,
reduction, indexing (gather, scatter, embedding), softmax and sort, scheduling (an engine's bookkeeping of batch and
cache, and operators that wait for the device), other collectives, and for what is no serving: convolution (with its
pooling and layout changes) and optimizer. CPU operators add views and allocation, and autograd.

The first rule whose pattern is found in the name wins; "other" where none is. What a name cannot say, it is not made to
say:

- One kernel for both prompts and single tokens (FlashAttention 3, PyTorch's SDPA, vLLM's unified kernel) is extend
  attention; decode attention is what only decodes, and the merging of a split KV. The trace's phase tells them apart.
- A top-k of short rows (PyTorch's `sbtopk::gatherTopK` and the bitonic sort behind it) is routing. Its top-k of long
  rows (`mbtopk`) and argmax are sampling. A softmax or another sort serves routing, sampling and attention alike, and
  so stands in a family of its own, "softmax and sort".
- A fused kernel goes where its costliest or first part would: norm with RoPE to norm, all-reduce with norm to
  all-reduce.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import NamedTuple

from g4lab.errors import bad

DOMAINS = ("kernel", "operator")
OTHER = "other"


class Rule(NamedTuple):
    """A row of families.csv. producer: whose names the pattern is for. source: where the example was seen."""

    family: str
    domain: str
    pattern: re.Pattern
    producer: str
    example: str
    source: str


@cache
def rules(domain: str) -> tuple[Rule, ...]:
    """The rules for "kernel" (GPU kernels and copies) or "operator" (CPU operators), in order of precedence.

    Raises:
        BadInput: another domain.
    """
    import csv

    if domain not in DOMAINS:
        raise bad("domain", domain, "one of " + ", ".join(DOMAINS))
    text = resources.files("g4lab.trace").joinpath("families.csv").read_text("utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["domain"] == domain]
    return tuple(Rule(**row | {"pattern": re.compile(row["pattern"])}) for row in rows)


@cache
def _family(name: str, domain: str) -> str:
    return next((rule.family for rule in rules(domain) if rule.pattern.search(name)), OTHER)


def families(domain: str) -> list[str]:
    """Every family of a domain, "other" last. Raises BadInput as `rules` does."""
    return [*dict.fromkeys(rule.family for rule in rules(domain)), OTHER]


def classify(names: Iterable[str], domain: str) -> list[str]:
    """The family of each name, in order. Raises BadInput as `rules` does."""
    rules(domain)
    return [_family(name, domain) for name in names]
