"""Compiles kernels for GPUs that are not here; a process of its own, because TRITON_INTERPRET is fixed at import.

Reads pickled (kernel name, architecture, choices) from stdin, one after another, and answers each on stdout with one
JSON object on a line: what the compiler made of it, or {"error": ..., "type": the error's class, "lasting": whether it
is the compiler's verdict, which no second attempt would change}.
"""

import contextlib
import io
import json
import pickle
import re
import subprocess
import sys

from g4lab.errors import G4LabError
from g4lab.tuning.arches import arch as limits_of
from g4lab.tuning.catalog import find

_ENCODING = re.compile(r"\s*/\* 0x[0-9a-f]+ \*/")


def main() -> None:
    out = sys.stdout
    # Whatever the imports print must not mix with the answers.
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(EOFError):
        while True:
            print(json.dumps(_answer(*pickle.load(sys.stdin.buffer))), file=out, flush=True)


def _answer(name: str, arch: str, choices: dict) -> dict:
    built = False
    try:
        case = find(name)(**choices)
        built = True
        return _compile(case, arch)
    except G4LabError as error:
        return {"error": str(error), "type": type(error).__name__, "lasting": False}
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        lasting = built and not isinstance(error, OSError | MemoryError)
        error = f"{name} for {arch} does not compile: {reason[0]}"
        return {"error": error, "type": "Unavailable", "lasting": lasting}


def _compile(case, arch: str) -> dict:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = case.kernel.arg_names
    signature, attributes = {}, {}
    for position, argument in enumerate(arguments):
        kind, _, divisor = case.signature.get(argument, "constexpr").partition(":")
        signature[argument] = kind
        if divisor:
            attributes[(position,)] = [["tt.divisibility", int(divisor)]]
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    log = io.StringIO()
    # ptxas reports spills only in its log, which Triton shows only when it compiles afresh.
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        target = GPUTarget("cuda", limits_of(arch).capability, 32)
        compiled = triton.compile(source, target=target, options=case.options)
    return {
        "ptx": compiled.asm["ptx"],
        "sass": _disassemble(compiled.asm["cubin"], knobs.nvidia.cuobjdump.path),
        "ptxas_log": log.getvalue(),
        "shared": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "tensor_memory": compiled.metadata.tmem_size,
    }


def _disassemble(cubin: bytes, cuobjdump: str) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True)
    return _ENCODING.sub("", done.stdout)  # the bits beside the text are most of it


if __name__ == "__main__":
    main()
