"""The arithmetic of machine code as a list of steps, to compare two kernels that were compiled by different compilers.

`eager_softmax` reads the softmax that PyTorch's own wheel carries for a GPU; `softmax_steps` finds the softmax of any
kernel that ends it with an IEEE division. Equal lists mean: the same operations, constants and roundings in the same
order, hence the same bits, on hardware that nobody had at hand.
"""

import functools
import mmap
import re
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from g4lab import env
from g4lab.errors import Unavailable, bad

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
# Input, output and accumulator of the kernel's template, as the C++ compiler mangles them.
_CPP_TYPES = {"bf16": "N3c108BFloat16ES2_f", "fp16": "N3c104HalfES2_f", "fp32": "fff"}
_ARITHMETIC = {"FADD", "FMUL", "FFMA", "MUFU"}


class Instruction(NamedTuple):
    """One SASS instruction: address in bytes, opcode with its modifiers, operands and predicate ("!P0") as written."""

    address: int
    opcode: str
    operands: list[str]
    predicate: str = ""


def parse(sass: str) -> list[Instruction]:
    """Instructions of the first function in cuobjdump's text."""
    first = re.split(r"^\s*Function : ", sass, maxsplit=2, flags=re.MULTILINE)
    if len(first) < 2:
        raise bad("sass", sass[:40], "the text of `cuobjdump -sass`, with a function in it")
    found = []
    for address, predicate, opcode, operands in _LINE.findall(first[1]):
        names = [operand.strip().replace(".reuse", "") for operand in operands.split(",")]
        found.append(Instruction(int(address, 16), opcode, names, predicate))
    return found


def softmax_steps(sass: str) -> list[str]:
    """The steps from logits to the quotient of the first softmax: one line an operation, operands by line number.

    Raises:
        Unavailable: there is no IEEE division with its slow path in the code.
    """
    code = parse(sass)
    registers: dict[str, object] = {}
    quotient = None
    for at, step in enumerate(code):
        if quotient and _skips_slow_division(code, at):
            return _listing(registers[quotient])
        _execute(step, registers)
        if step.opcode == "FFMA":  # the last step of the division's fast path
            quotient = step.operands[0]
    raise Unavailable("no IEEE division with its slow path in this machine code")


def eager_softmax(dtype: str, top_k: int, arch: str = "sm_90") -> str:
    """SASS of eager PyTorch's softmax over `top_k` values, read from the installed libtorch_cuda (about 5 s, cached).

    Raises:
        BadInput: a dtype other than bf16, fp16, fp32.
        Unavailable: a PyTorch without CUDA, or without code for `arch`.
    """
    if dtype not in _CPP_TYPES:
        raise bad("dtype", dtype, "one of " + ", ".join(_CPP_TYPES))
    log2 = (top_k - 1).bit_length()
    # The last of the template's arguments, the warp's size, is newer than PyTorch 2.11.
    kernel = f"softmax_warp_forwardI{_CPP_TYPES[dtype]}Li{log2}ELb0ELb0E(Li32E)?E"
    version = env.versions()["torch"]
    kept = env.cache_dir() / "eager_sass" / f"softmax-{dtype}-{1 << log2}-{arch}-torch-{version}.sass"
    if not kept.exists():
        library = _torch_cuda()
        names = [name for name in _softmax_names(library) if re.search(kernel, name)]
        sass = _disassemble(library, names, arch) if names else ""
        if "Function : " not in sass:
            raise Unavailable(f"PyTorch {version} carries no softmax kernel {kernel} for {arch}")
        env.atomic_write(kept, sass)
    return kept.read_text()


def _torch_cuda() -> Path:
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
    if not library.exists():
        raise Unavailable("the installed PyTorch is a build without CUDA; its eager machine code is not here")
    return library


def _softmax_names(library: Path) -> list[str]:
    # The host side registers its kernels by mangled name, each a zero-terminated string of the library.
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = set(re.findall(rb"_ZN\w*softmax_warp_forward\w+PKbib\0", text))
    return sorted(name[:-1].decode() for name in found)


def _disassemble(library: Path, names: list[str], arch: str) -> str:
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "-arch", arch, "-sass", "-fun", ",".join(names), str(library)]
    return subprocess.run(command, capture_output=True, text=True).stdout


def _skips_slow_division(code: list[Instruction], at: int) -> bool:
    """Whether the branch at `at` jumps over nothing but a call, which divides operands that are subnormal or huge."""
    if code[at].opcode != "BRA":
        return False
    target = int(code[at].operands[-1], 16)
    skipped = {step.opcode.split(".")[0] for step in code[at + 1 :] if step.address < target}
    return "CALL" in skipped and not skipped & _ARITHMETIC


def _execute(step: Instruction, registers: dict) -> None:
    """Symbolically: what the destination register holds, as a nested tuple; unknown instructions make a new input."""
    opcode, operands = step.opcode, step.operands
    base = opcode.split(".")[0]
    value = functools.partial(_value, registers=registers)
    if base in ("FADD", "FMUL", "FFMA"):
        a, b, *rest = map(value, operands[1:])
        if base == "FADD" and 0.0 in (a, b):
            result = b if a == 0.0 else a
        else:
            result = (opcode.removesuffix(".FTZ"), *sorted((a, b), key=_rank), *rest)
    elif base == "MUFU":
        result = (opcode, value(operands[1]))
    elif opcode == "SHFL.BFLY":
        registers[operands[1]] = (f"{opcode} {int(operands[3], 16)}", value(operands[2]))
        return
    elif opcode == "IMAD.SHL.U32" or opcode.startswith("SHF.L"):
        amount = int(operands[2], 16)
        bits = amount.bit_length() - 1 if base == "IMAD" else amount
        result = (f"SHL {bits}", value(operands[1]))
    elif opcode in ("MOV", "IMAD.MOV.U32"):
        result = value(operands[-1])
    elif base == "HFMA2" and operands[1:3] == ["-RZ", "RZ"]:  # how ptxas spells a 32-bit constant
        high, low = (struct.pack("<e", float(operand)) for operand in operands[3:5])
        result = struct.unpack("<f", low + high)[0]
    else:
        result = ("input", step.address)
    registers[operands[0]] = result


def _value(operand: str, registers: dict):
    negative, name = operand.startswith("-"), operand.lstrip("-")
    if name == "RZ":
        return 0.0
    if name.startswith("0x"):
        result = struct.unpack("<f", struct.pack("<I", int(name, 16)))[0]
    elif re.fullmatch(r"[\d.]+(e[+-]?\d+)?", name):
        result = float(name)
    else:
        result = registers.get(name, ("input", name))
    if not negative:
        return result
    return -result if isinstance(result, float) else ("neg", result)


def _rank(value) -> tuple:
    """Sums and products are commutative; one order for both compilers: values, then negated values, then constants."""
    if isinstance(value, float):
        return (2, value, "")
    return (1 if value[0] == "neg" else 0, 0.0, _shape(value))


def _shape(value) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    return "input" if value[0] == "input" else f"{value[0]}({','.join(map(_shape, value[1:]))})"


def _listing(root) -> list[str]:
    lines, numbers = [], {}

    def show(value) -> str:
        if isinstance(value, float):
            return f"{value:.9g}"
        if value[0] == "neg":
            return "-" + show(value[1])
        if value not in numbers:
            if value[0] == "input":
                numbers[value] = f"in{sum(name.startswith('in') for name in numbers.values())}"
            else:
                text = f"{value[0]} {', '.join(map(show, value[1:]))}"
                numbers[value] = f"t{len(lines)}"
                lines.append(f"t{len(lines)} = {text}")
        return numbers[value]

    show(root)
    return lines
