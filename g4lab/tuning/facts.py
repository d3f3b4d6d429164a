"""Compile facts: registers, spills, shared memory and instructions of a kernel, for any GPU, on a machine without one.

They tell the direction (which tile loses, and why), not magnitudes, and they do not rank near-equals.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from g4lab import env, errors
from g4lab.tuning import arches, catalog

_OPCODE = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s", re.MULTILINE)


@dataclass(frozen=True)
class CompileFacts:
    """registers per thread; spill_stores, spill_loads and shared in bytes; blocks_per_sm by registers and shared.

    mma: the matrix unit used ("wgmma", "tcgen05", "mma.sync" or None). pipelined: asynchronous copies are in use.
    """

    kernel: str
    arch: str
    choices: dict
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    num_warps: int
    blocks_per_sm: int
    mma: str | None
    pipelined: bool
    ptx: str = field(repr=False)
    sass: str = field(repr=False)

    @cached_property
    def instructions(self) -> Counter:
        """PTX instructions by opcode, as written ("shfl.sync.bfly.b32": 3)."""
        return Counter(_OPCODE.findall(self.ptx))

    def count(self, prefix: str) -> int:
        """PTX instructions whose opcode starts with `prefix`."""
        return sum(n for opcode, n in self.instructions.items() if opcode.startswith(prefix))


def compile_facts(kernel: str, arch: str = "sm_90", **choices) -> CompileFacts:
    """Facts of one kernel; `choices` go to its `compile_case` (tile, dtype, ...). Cached on disk by source and choices.

    Raises:
        BadInput: unknown kernel or architecture, or a choice the kernel does not take.
        Unavailable: it does not compile here.
    """
    return compile_many([(kernel, arch, choices)])[0]


def compile_many(
    requests: Sequence[tuple[str, str, dict]], progress: Callable[[int, int], None] | None = None
) -> list[CompileFacts]:
    """Facts of many (kernel, arch, choices), in order; those not in the cache share one compiling process.

    progress: called with (done, total) after each.
    """
    requests = list(requests)
    for kernel, arch, choices in requests:
        arches.arch(arch)
        _check_choices(kernel, choices)
    files = [_cache_file(*request) for request in requests]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    done = len(requests) - len(missing)
    if progress:
        progress(done, len(requests))
    for i, answer in zip(missing, _answers([requests[i] for i in missing]), strict=True):
        if "error" in answer:
            raise getattr(errors, answer["type"])(answer["error"])
        env.atomic_write(files[i], json.dumps(answer))
        done += 1
        if progress:
            progress(done, len(requests))
    return [_facts(*request, json.loads(file.read_text())) for request, file in zip(requests, files, strict=True)]


def _check_choices(kernel: str, choices: dict) -> None:
    signature = inspect.signature(catalog.find(kernel))
    try:
        signature.bind(**choices)
    except TypeError:
        raise errors.bad("choices", ", ".join(choices), f"some of {', '.join(signature.parameters)}") from None


def _answers(requests: list) -> Iterable[dict]:
    if not requests:
        return
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    with subprocess.Popen(
        [sys.executable, "-m", "g4lab.tuning.compile_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as child:  # fmt: skip
        try:
            child.stdin.write(pickle.dumps(requests))
            child.stdin.close()
            answered = 0
            for line in child.stdout:
                yield json.loads(line)
                answered += 1
            if answered < len(requests):
                last = child.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
                raise errors.Unavailable(f"the compiling process ended early: {''.join(last)}")
        finally:
            child.kill()


def _facts(kernel: str, arch: str, choices: dict, answer: dict) -> CompileFacts:
    log, ptx = answer["ptxas_log"], answer["ptx"]
    registers = _number(r"Used (\d+) registers", log)
    units = ("wgmma", "tcgen05.mma", "mma.sync")
    return CompileFacts(
        kernel=kernel,
        arch=arch,
        choices=choices,
        registers=registers,
        spill_stores=_number(r"(\d+) bytes spill stores", log),
        spill_loads=_number(r"(\d+) bytes spill loads", log),
        shared=answer["shared"],
        num_warps=answer["num_warps"],
        blocks_per_sm=arches.arch(arch).blocks_per_sm(registers, answer["num_warps"], answer["shared"]),
        mma=next((unit.removesuffix(".mma") for unit in units if f"{unit}." in ptx), None),
        pipelined="cp.async" in ptx,
        ptx=ptx,
        sass=answer["sass"],
    )


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    if not found:
        raise errors.Unavailable(f"ptxas did not report {pattern!r}; its log begins {log[:80]!r}")
    return int(found.group(1))


def _cache_file(kernel: str, arch: str, choices: dict) -> Path:
    module = catalog.CASES[kernel].partition(":")[0]
    versions = env.versions()
    parts = [kernel, arch, repr(sorted(choices.items())), versions["triton"], versions["sglang"], *_sources(module)]
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
    return env.cache_dir() / "compile_facts" / f"{kernel}-{arch}-{digest}.json"


def _sources(module: str) -> list[str]:
    """Text of `module` and of every g4lab.kernels module it imports, directly or not, and of the compiling process."""
    texts, todo, seen = [], [module, "g4lab.tuning.compile_child"], set()
    while todo:
        name = todo.pop()
        spec = None if name in seen else importlib.util.find_spec(name)
        seen.add(name)
        if spec is None or not spec.origin:
            continue
        text = Path(spec.origin).read_text()
        texts.append(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("g4lab.kernels"):
                submodules = [f"{node.module}.{a.name}" for a in node.names] if node.module == "g4lab.kernels" else []
                todo += submodules or [node.module]
    return texts
