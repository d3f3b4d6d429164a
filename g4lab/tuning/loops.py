"""The loops of machine code that do the matrix work, and what each iteration costs: spills, copies, overlap.

A loop is a natural loop of the control-flow graph: a branch back to a block that every path to the branch runs through,
and all blocks between. A jump back from code that ptxas moved out of line is none.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from g4lab.tuning.machine_code import Instruction, parse

_BYTES = {"64": 8, "128": 16}
_WAITS = ("WARPGROUP.DEPBAR", "SYNCS.PHASECHK")  # for wgmma; for a barrier that tcgen05 arrives at


@dataclass(frozen=True)
class Loop:
    """One innermost loop with matrix instructions; counts are per iteration and warp, bytes per iteration and thread.

    Attributes:
        start, end: addresses of its first and last instruction in bytes.
        matrix: matrix instructions (HMMA, HGMMA, UTCHMMA, ...).
        spill_stores, spill_loads: bytes to and from local memory.
        copies: asynchronous copies to shared memory.
        overlapped: matrix instructions that run while such a copy is in flight.
    """

    start: int
    end: int
    instructions: int
    matrix: int
    spill_stores: int
    spill_loads: int
    copies: int
    overlapped: int

    @property
    def pipelined(self) -> bool:
        """Loads for a later step run while this one computes; copies that are waited for at once do not count."""
        return self.overlapped > 0

    @property
    def spills(self) -> int:
        """Bytes to and from local memory."""
        return self.spill_stores + self.spill_loads


def matrix_loops(sass: str) -> tuple[Loop, ...]:
    """The innermost loops that hold matrix instructions, by address, of the first function in cuobjdump's text."""
    code = parse(sass)
    blocks = _blocks(code)
    loops = [frozenset(loop) for loop in _natural_loops(_successors(code, blocks))]
    working = [loop for loop in loops if any(_is_matrix(step) for i in loop for step in code[slice(*blocks[i])])]
    innermost = [loop for loop in working if not any(other < loop for other in working)]
    found = [_describe([step for i in sorted(loop) for step in code[slice(*blocks[i])]]) for loop in innermost]
    return tuple(sorted(found, key=lambda loop: loop.start))


def local_bytes(code: Sequence[Instruction]) -> tuple[int, int]:
    """Bytes that these instructions store to and load from local memory, per thread, each executed once."""
    stored = loaded = 0
    for step in code:
        base, *modifiers = step.opcode.split(".")
        size = next((_BYTES[modifier] for modifier in modifiers if modifier in _BYTES), 4)
        stored += size * (base == "STL")
        loaded += size * (base == "LDL")
    return stored, loaded


def _is_matrix(step: Instruction) -> bool:
    return step.opcode.split(".")[0].endswith("MMA")


def _describe(body: list[Instruction]) -> Loop:
    stores, loads = local_bytes(body)
    return Loop(
        start=body[0].address,
        end=body[-1].address,
        instructions=len(body),
        matrix=sum(map(_is_matrix, body)),
        spill_stores=stores,
        spill_loads=loads,
        copies=sum(step.opcode.startswith("LDGSTS") for step in body),
        overlapped=_overlapped(body),
    )


def _overlapped(body: list[Instruction]) -> int:
    """Matrix instructions that run while a copy is in flight, in one iteration after a first one that fills the pipe.

    Those of a warp group (wgmma) and of tensor memory (tcgen05) run from their issue until they are waited for.
    """
    flying, pending, running = 0, False, 0  # committed copies, copies since the last commit, uncounted matrix work
    count = 0
    for iteration in range(2):
        for step in body:
            if step.opcode.startswith("LDGSTS"):
                pending = True
                count, running = count + running * iteration, 0
            elif step.opcode == "LDGDEPBAR":
                flying, pending = flying + pending, False
            elif step.opcode == "DEPBAR.LE" and step.operands[0] == "SB0":
                flying = min(flying, int(step.operands[1], 16))
            elif step.opcode.startswith(_WAITS):
                running = 0
            elif _is_matrix(step) and (flying or pending):
                count += iteration
            elif _is_matrix(step):
                running += not step.opcode.startswith("HMMA")
    return count


def _blocks(code: list[Instruction]) -> list[tuple[int, int]]:
    """Basic blocks as (first, last + 1) positions in `code`."""
    place = {step.address: i for i, step in enumerate(code)}
    starts = {0}
    for i, step in enumerate(code):
        if _ends_block(step):
            starts.add(i + 1)
        if (target := _target(step)) in place:
            starts.add(place[target])
    return list(itertools.pairwise(sorted(starts | {len(code)})))


def _successors(code: list[Instruction], blocks: list[tuple[int, int]]) -> list[set[int]]:
    block_at = {code[first].address: i for i, (first, _) in enumerate(blocks)}
    meeting: dict[str, int] = {}  # where threads meet again, by barrier, as last set before this address
    found = []
    for i, (first, end) in enumerate(blocks):
        for step in code[first:end]:
            if step.opcode.startswith("BSSY"):
                meeting[step.operands[0]] = _target(step)
        last = code[end - 1]
        base = last.opcode.split(".")[0]
        target = meeting.get(last.operands[0]) if base == "BSYNC" else _target(last) if base == "BRA" else None
        leaves = base in ("EXIT", "RET") or target is not None
        always = leaves and not last.predicate and (base != "BRA" or len(last.operands) == 1)
        following = set() if always or i + 1 == len(blocks) else {i + 1}
        found.append(following | ({block_at[target]} if target in block_at else set()))
    return found


def _ends_block(step: Instruction) -> bool:
    return step.opcode.split(".")[0] in ("BRA", "BSYNC", "EXIT", "RET")


def _target(step: Instruction) -> int | None:
    """Where a BRA jumps to, or where the threads that a BSSY counts meet again."""
    if step.opcode.split(".")[0] in ("BRA", "BSSY") and step.operands[-1].startswith("0x"):
        return int(step.operands[-1], 16)
    return None


def _natural_loops(successors: list[set[int]]) -> list[set[int]]:
    """Blocks of each loop; loops with the same head are one."""
    reached = _reachable(successors)
    before: dict[int, set[int]] = {i: set() for i in reached}
    for i in reached:
        for j in successors[i]:
            before[j].add(i)
    dominators = _dominators(reached, before)
    loops: dict[int, set[int]] = {}
    for tail in reached:
        for head in successors[tail] & dominators[tail]:
            loop = loops.setdefault(head, {head})
            todo = [tail]
            while todo:
                i = todo.pop()
                if i not in loop:
                    loop.add(i)
                    todo += before[i]
    return list(loops.values())


def _reachable(successors: list[set[int]]) -> list[int]:
    seen, todo = set(), [0]
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo += successors[i]
    return sorted(seen)


def _dominators(reached: list[int], before: dict[int, set[int]]) -> dict[int, set[int]]:
    dominators = {i: set(reached) for i in reached}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for i in reached[1:]:
            new = set.intersection(*(dominators[j] for j in before[i])) | {i}
            changed |= new != dominators[i]
            dominators[i] = new
    return dominators
