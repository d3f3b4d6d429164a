"""Compile facts: registers, spills, shared memory and instructions of a kernel, for any GPU, on a machine without one.

They tell the direction (which tile loses, and why), not magnitudes, and they do not rank near-equals.
"""

import ast
import gzip
import hashlib
import importlib.util
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from g4lab import env, errors
from g4lab.tuning import arches, catalog, compile_pool
from g4lab.tuning.loops import Loop, local_bytes, matrix_loops
from g4lab.tuning.machine_code import parse

LIMIT_S = 60.0  # a compile takes 1 to 10 s; where ptxas runs out of registers it can search for minutes

_LIMITED = ("num_warps", "shared", "tensor_memory")
_OPCODE = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s", re.MULTILINE)


@dataclass(frozen=True)
class CompileFacts:
    """What the compiler made of one kernel with one set of choices, and what follows from it for one SM.

    Attributes:
        registers: per thread.
        spill_stores, spill_loads: bytes per thread as ptxas counts them, wherever they are in the code.
        shared: bytes per block.
        blocks_per_sm: that registers, shared and tensor memory and warps leave room for; 0 where one is too many.
        mma: the matrix unit used ("wgmma", "tcgen05", "mma.sync" or None).
        serialized: ptxas makes every wgmma wait for the one before it.
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
    serialized: bool
    ptx: str = field(repr=False)
    sass: str = field(repr=False)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """The innermost loops with matrix instructions, by address."""
        return matrix_loops(self.sass)

    @property
    def pipelined(self) -> bool:
        """Whether any of these loops computes while asynchronous copies for a later step are in flight."""
        return any(loop.pipelined for loop in self.loops)

    @property
    def loop_spills(self) -> int:
        """Bytes to and from local memory, per thread, in one iteration of the loop that moves the most."""
        return max((loop.spills for loop in self.loops), default=0)

    @property
    def spills_outside(self) -> int:
        """Bytes to and from local memory, per thread, of the instructions outside of these loops."""
        return sum(local_bytes(parse(self.sass))) - sum(loop.spills for loop in self.loops)

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
    """Facts of many (kernel, arch, choices), in order; those not in the cache are compiled side by side.

    progress: called with (done, total) after each.

    Raises:
        BadInput, Unavailable: as `compile_facts`, for the first request that cannot be answered.
    """
    found = compile_each(requests, progress)
    for each in found:
        if isinstance(each, errors.Unavailable):
            raise each
    return found


def compile_each(
    requests: Sequence[tuple[str, str, dict]], progress: Callable[[int, int], None] | None = None
) -> list[CompileFacts | errors.Unavailable]:
    """As `compile_many`, with the error in the place of what does not compile, or not in LIMIT_S seconds of CPU time.

    Both are cached as well. Raises BadInput as `compile_facts`.
    """
    requests = list(requests)
    for kernel, arch, choices in requests:
        arches.arch(arch)
        _check_choices(kernel, choices)
    codes = {kernel: _code(kernel) for kernel in {kernel for kernel, *_ in requests}}
    files = [_cache_file(*request, codes[request[0]]) for request in requests]
    missing = {file: request for file, request in zip(files, requests, strict=True) if not file.exists()}
    total, done = len(set(files)), len(set(files)) - len(missing)
    failed = {}
    if progress:
        progress(done, total)
    places = list(missing)
    for place, answer in compile_pool.answers(list(missing.values()), LIMIT_S):
        if answer.get("type") == "BadInput":
            raise errors.BadInput(answer["error"])
        if answer.get("lasting", True):
            env.atomic_write(places[place], gzip.compress(json.dumps(answer).encode(), 1, mtime=0))
        else:
            failed[places[place]] = errors.Unavailable(answer["error"])
        done += 1
        if progress:
            progress(done, total)
    return [failed.get(file) or _read(file, request) for file, request in zip(files, requests, strict=True)]


def _read(file: Path, request: tuple) -> CompileFacts | errors.Unavailable:
    answer = json.loads(gzip.decompress(file.read_bytes()))
    return errors.Unavailable(answer["error"]) if "error" in answer else _facts(*request, answer)


def _check_choices(kernel: str, choices: dict) -> None:
    signature = inspect.signature(catalog.find(kernel))
    try:
        signature.bind(**choices)
    except TypeError:
        raise errors.bad("choices", ", ".join(choices), f"some of {', '.join(signature.parameters)}") from None


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
        blocks_per_sm=arches.arch(arch).blocks_per_sm(registers, *(answer[name] for name in _LIMITED)),
        mma=next((unit.removesuffix(".mma") for unit in units if f"{unit}." in ptx), None),
        serialized="wgmma.mma_async instructions are serialized" in log,
        ptx=ptx,
        sass=answer["sass"],
    )


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    if not found:
        raise errors.Unavailable(f"ptxas did not report {pattern!r}; its log begins {log[:80]!r}")
    return int(found.group(1))


def code_of(kernel: str) -> str:
    """A digest of what a kernel's machine code depends on beside its choices: its sources, Triton and SGLang."""
    return _digest(_code(kernel))


def _code(kernel: str) -> list[str | None]:
    versions = env.versions()
    return [versions["triton"], versions["sglang"], *_sources(catalog.CASES[kernel].partition(":")[0])]


def _digest(parts: list[str | None]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _cache_file(kernel: str, arch: str, choices: dict, code: list[str | None]) -> Path:
    chosen = inspect.signature(catalog.find(kernel)).bind(**choices)
    chosen.apply_defaults()
    digest = _digest([kernel, arch, repr(sorted(chosen.arguments.items())), *code])
    return env.cache_dir() / "compile_facts" / f"{kernel}-{arch}-{digest}.json.gz"


def _sources(module: str) -> list[str]:
    """Text of `module` and of every g4lab.kernels module it imports, directly or not, and of the compiling process.

    Not of the tables of tiles: which tile they pick is among the choices.
    """
    texts, todo, seen = [], [module, "g4lab.tuning.compile_child"], {"g4lab.kernels.extend_tiles"}
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
