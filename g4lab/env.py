"""What this process runs on: machine, versions, commit and folders. Nothing here imports torch."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from g4lab.errors import Unavailable

PACKAGES = ("g4lab", "torch", "triton", "transformers", "sglang", "sglang-kernel", "numpy")
COMMIT_FILE = "COMMIT"  # in a copy of the checkout without .git: the commit, and "+" where files differed
_ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def machine() -> dict:
    """This machine without its name: cpu, cores (usable by this process), ram_gb (GiB), gpus, driver, os, python."""
    import psutil

    gpus, driver = _gpus()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "driver": driver,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def machine_name() -> str:
    """A short name to file records under: the GPU's ("nvidia-h200"), or "cpu-<cores>-cores"."""
    gpus = machine()["gpus"]
    name = gpus[0]["name"] if gpus else f"cpu {machine()['cores']} cores"
    return "-".join(name.lower().split())


def has_gpu() -> bool:
    """True where the NVIDIA driver lists a GPU that CUDA_VISIBLE_DEVICES does not hide."""
    return bool(machine()["gpus"])


def interpreting() -> bool:
    """True where Triton kernels of this process run in Triton's interpreter on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def interpret_without_gpu() -> None:
    """On a machine without a GPU, let this process run Triton kernels in the interpreter.

    Raises:
        Unavailable: triton is imported already and compiles, for it reads TRITON_INTERPRET only once; or its
            interpreter does not run with the installed NumPy.
    """
    if has_gpu():
        return
    if interpreter_problem():
        raise Unavailable(interpreter_problem())
    if interpreting():
        return
    if "triton" in sys.modules:
        raise Unavailable("Triton is imported and compiles for a GPU: call interpret_without_gpu first, or restart")
    os.environ["TRITON_INTERPRET"] = "1"


def interpreter_problem() -> str:
    """Why the installed versions cannot interpret kernels; empty where they can."""
    from packaging.version import Version

    triton, numpy = (versions()[name] for name in ("triton", "numpy"))
    if triton and numpy and Version(triton) < Version("3.7") and Version(numpy) >= Version("2.4"):
        # It takes a loop's bounds as arrays of one element, which NumPy no longer turns into a number.
        return f"the interpreter of Triton {triton} needs NumPy below 2.4; NumPy {numpy} is installed"
    return ""


@functools.cache
def versions() -> dict[str, str | None]:
    """Installed version of every package a result depends on; None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def commit() -> tuple[str | None, bool]:
    """(commit of the checkout or copy g4lab runs from, whether tracked files differ); (None, False) outside of one."""
    if not (_ROOT / ".git").exists():
        copied = (_ROOT / COMMIT_FILE).read_text().strip() if (_ROOT / COMMIT_FILE).exists() else ""
        return copied.rstrip("+") or None, copied.endswith("+")
    sha = _run("git", "-C", str(_ROOT), "rev-parse", "HEAD")
    return sha, bool(_run("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no"))


def checkout(part: str) -> Path:
    """Folder `part` ("data", "notebooks") of the checkout. Raises Unavailable for a g4lab installed without one."""
    path = _ROOT / part
    if not path.is_dir():
        raise Unavailable(f"{part}/ belongs to a checkout of g4lab; this one is installed without it")
    return path


def data_dir() -> Path:
    """The checkout's data/ folder: published tables and committed records."""
    return checkout("data")


def cache_dir() -> Path:
    """$G4LAB_CACHE, or the user's cache folder: tiny checkpoints and compile facts, safe to delete."""
    path = Path(os.environ.get("G4LAB_CACHE") or Path.home() / ".cache" / "g4lab")
    path.mkdir(parents=True, exist_ok=True)
    return path


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Write `content` beside `path`, then rename: a reader sees the old file or the whole new one, never a part."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write beside `path`, renamed to it when the block ends; when the block raises, nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _gpus() -> tuple[list[dict], str | None]:
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return [], None
    fields = "name,compute_cap,memory.total,driver_version"
    out = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [line.split(", ") for line in (out or "").splitlines()]
    gpus = [
        {"name": name, "sm": "sm_" + cap.replace(".", ""), "memory_gb": round(float(mib) / 1024, 1)}
        for name, cap, mib, _ in rows
    ]
    return gpus, rows[0][3] if rows else None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
