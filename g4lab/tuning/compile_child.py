"""Compiles kernels for GPUs that are not here; a process of its own, because TRITON_INTERPRET is fixed at import.

Reads a pickled list of (kernel name, architecture, choices) from stdin and writes one JSON object a line to stdout.
"""

import contextlib
import io
import json
import pickle
import subprocess
import sys

from g4lab.errors import G4LabError
from g4lab.tuning.arches import arch as limits_of
from g4lab.tuning.catalog import find


def main() -> None:
    requests = pickle.load(sys.stdin.buffer)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever the imports print must not mix with the answers
        for request in requests:
            print(json.dumps(_answer(*request)), file=out, flush=True)


def _answer(name: str, arch: str, choices: dict) -> dict:
    try:
        return _compile(name, arch, choices)
    except G4LabError as error:
        return {"error": str(error), "type": type(error).__name__}
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return {"error": f"{name} for {arch} does not compile: {reason[0]}", "type": "Unavailable"}


def _compile(name: str, arch: str, choices: dict) -> dict:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case = find(name)(**choices)
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
    }


def _disassemble(cubin: bytes, cuobjdump: str) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
