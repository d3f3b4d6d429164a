"""`g4lab doctor`: what this machine can prove, and what stops it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import env, patches

if TYPE_CHECKING:
    import pandas as pd

MIN_PYTHON, MIN_GXX, MIN_DISK_GB = (3, 11), 11, 2


@dataclass(frozen=True)
class Finding:
    """One row: `state` is "ok", "limited" (works, proves less) or "missing"; `needed` by `make run` on this machine."""

    check: str
    state: str
    detail: str
    meaning: str
    needed: bool = False


def examine() -> list[Finding]:
    """Look at everything a run depends on, without starting anything. Order: machine, libraries, engine, room."""
    return [
        _python(),
        _gpu(),
        _torch(),
        _triton(),
        _library("transformers", "the models' eager truth"),
        _sglang(),
        *_hook_targets(),
        _sgl_kernel(),
        _compiler(),
        _notebook_kernel(),
        _disk(),
        _weights(),
    ]


def report() -> pd.DataFrame:
    """The findings as a table: check, state, detail, meaning, needed."""
    import pandas as pd

    return pd.DataFrame([asdict(finding) for finding in examine()])


def ready(findings: list[Finding]) -> bool:
    """True when nothing that `make run` needs here is missing."""
    return not any(finding.needed and finding.state == "missing" for finding in findings)


def _python() -> Finding:
    state = "ok" if sys.version_info >= MIN_PYTHON else "missing"
    return Finding("Python", state, env.machine()["python"], "3.11 or later", needed=True)


def _gpu() -> Finding:
    gpus, driver = env.machine()["gpus"], env.machine()["driver"]
    if not gpus:
        return Finding("GPU", "limited", f"none; {env.machine()['cpu']}, {env.machine()['cores']} cores", NO_GPU)
    names = ", ".join(f"{g['name']} ({g['sm']}, {g['memory_gb']} GiB)" for g in gpus)
    return Finding("GPU", "ok", f"{names}; driver {driver}", "speed and bit-equality on the chip")


NO_GPU = "no kernel times, no bit-equality on the chip; semantics, compile facts and serving logic still hold"


def _torch() -> Finding:
    if not env.versions()["torch"]:
        return Finding("torch", "missing", "not installed", "everything", needed=True)
    import torch

    cuda = (
        f"CUDA {torch.version.cuda} build"
        if torch.version.cuda
        else "CPU build: torchvision and SGLang will not import"
    )
    state = "ok" if torch.version.cuda else "missing"
    if env.has_gpu() and not torch.cuda.is_available():
        return Finding(
            "torch", "missing", f"{torch.__version__}, {cuda}, cannot use the GPU", "a newer driver", needed=True
        )
    return Finding("torch", state, f"{torch.__version__}, {cuda}", "eager references", needed=True)


def _triton() -> Finding:
    version = env.versions()["triton"]
    if not version:
        return Finding("Triton", "missing", "not installed", "every kernel", needed=True)
    if env.has_gpu() and not env.interpreting():
        return Finding(
            "Triton", "ok", f"{version}, compiled for the GPU", "the kernels as they run in serving", needed=True
        )
    if env.interpreter_problem():
        return Finding("Triton", "missing", env.interpreter_problem(), "every kernel", needed=True)
    how = "interpreted (TRITON_INTERPRET=1)" if env.interpreting() else "no GPU: interpreted where a run asks for it"
    return Finding(
        "Triton", "limited", f"{version}, {how}", "a kernel's semantics and its compile facts, not its speed", True
    )


def _library(name: str, meaning: str) -> Finding:
    version = env.versions()[name]
    return Finding(name, "ok" if version else "missing", version or "not installed", meaning, needed=True)


def _sglang() -> Finding:
    version = env.versions()["sglang"]
    if not version:
        return Finding("SGLang", "missing", "not installed", "serving", needed=True)
    known = version in patches.SUPPORTED_SGLANG
    detail = version if known else f"{version}; the patches were run with {' and '.join(patches.SUPPORTED_SGLANG)}"
    return Finding(
        "SGLang", "ok" if known else "limited", detail, "the server that notebooks and tests run", needed=True
    )


def _hook_targets() -> list[Finding]:
    if not env.versions()["sglang"]:
        return []
    rows = patches.targets_report()
    lost = [f"{row.patch}: {row.why}" for row in rows if not row.found]
    if not lost:
        return [Finding("hook targets", "ok", f"{len(rows)} of {len(rows)} found", "every patch finds what it changes")]
    detail = f"{len(rows) - len(lost)} of {len(rows)} found; missing {'; '.join(lost)}"
    return [Finding("hook targets", "limited", detail, "a patch whose target is missing warns and stays off")]


def _sgl_kernel() -> Finding:
    spec = importlib.util.find_spec("sgl_kernel")
    if spec and spec.origin and "standin" not in Path(spec.origin).parts:
        return Finding(
            "sgl_kernel", "ok", f"real, {env.versions()['sglang-kernel']}", "SGLang's own CUDA kernels", env.has_gpu()
        )
    if env.has_gpu():
        return Finding("sgl_kernel", "missing", "not installed", "SGLang on a GPU: pip install sglang (whole)", True)
    return Finding(
        "sgl_kernel", "limited", "stand-in, for the server's process only", "serving logic on a CPU, not its speed"
    )


def _compiler() -> Finding:
    gxx = shutil.which(os.environ.get("CXX", "g++"))
    text = subprocess.run([gxx, "-dumpfullversion"], capture_output=True, text=True).stdout.strip() if gxx else ""
    meaning = f"SGLang's JIT kernels use std::bit_cast, so g++ >= {MIN_GXX} (pyc96/sglang PR #4)"
    new_enough = bool(re.match(r"\d+", text)) and int(text.split(".")[0]) >= MIN_GXX
    state = "ok" if new_enough else ("missing" if env.has_gpu() else "limited")
    return Finding("host compiler", state, f"g++ {text}" if text else "no g++", meaning, needed=env.has_gpu())


def _notebook_kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        argv = KernelSpecManager().get_kernel_spec("python3").argv
    except NoSuchKernel:
        return Finding("Jupyter kernel", "missing", "no kernel named python3", "executing notebooks", needed=True)
    return Finding("Jupyter kernel", "ok", f"python3 ({Path(argv[0]).name})", "executing notebooks", needed=True)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    state = "ok" if free >= MIN_DISK_GB else "missing"
    return Finding(
        "disk", state, f"{free:.0f} GiB free here", f"at least {MIN_DISK_GB} GiB for runs/ and caches", needed=True
    )


def _weights() -> Finding:
    hub = Path(
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    )
    found = sorted(
        {
            p.parts[-4].removeprefix("models--").replace("--", "/")
            for p in hub.glob("models--google--gemma-4-*/snapshots/*/config.json")
        }
    )
    if found:
        return Finding("Gemma-4 weights", "ok", ", ".join(found), "quality and acceptance of the real models")
    return Finding(
        "Gemma-4 weights", "limited", "none in the Hugging Face cache", "random twins: identity and logic, not quality"
    )
