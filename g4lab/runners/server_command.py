"""How SGLang's server is started here: checked arguments -> a command line and an environment. Starts nothing."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.gemma4 import NAMES, spec
from g4lab.gemma4.checkpoint import DTYPE_BYTES, ensure, sglang_overrides, write_checkpoint
from g4lab.gemma4.specs import TWINS
from g4lab.patches import parse

STANDIN = Path(__file__).parent / "standin"
# backend -> SGLang's flag. Gemma-4 may not ask for torch_native, but without AMX kernels intel_amx falls back to it.
CPU_BACKENDS = {"torch_native": "intel_amx", "triton": "triton"}
# A CPU server is for correctness: no graphs, a small pool, no overlap; the client's first request is the warm-up; and
# no core is spent on waiting.
_CPU_FLAGS = (
    *("--device", "cpu", "--disable-cuda-graph", "--disable-overlap-schedule", "--skip-server-warmup"),
    *("--mem-fraction-static", "0.1", "--max-total-tokens", "8192", "--sleep-on-idle"),
)
_MTP_FLAGS = (
    *("--speculative-algorithm", "NEXTN", "--speculative-num-steps", "3"),
    *("--speculative-num-draft-tokens", "4", "--speculative-eagle-topk", "1"),
)
# Below those that Linux gives to whoever asks for any: the server takes its port only seconds later.
_PORTS = range(20_000, 32_768)
_OURS = ("--model-path", "--model", "--port", "--host", "--device", "--attention-backend", "--dtype")


@dataclass(frozen=True)
class Launch:
    """A server to start: the command, the variables to add to its environment, and what they were made from."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    model: str
    checkpoint: Path
    port: int
    device: str
    patches: tuple[str, ...]


def server_command(
    model: str | Path,
    patches: str = "default",
    args: Sequence[str] = (),
    *,
    folder: Path,
    draft: str | Path | None = None,
    device: str | None = None,
    attention_backend: str | None = None,
    dtype: str | None = None,
    port: int | None = None,
    env_vars: Mapping[str, str] | None = None,
) -> Launch:
    """The arguments of runners.sglang_server, checked; `folder` receives the counters and a dummy model's config."""
    names = parse(patches)
    args = [str(arg) for arg in args]
    for arg in args:
        if arg.split("=")[0] in _OURS:
            raise bad("args", arg, "SGLang's other flags; this one is an argument of sglang_server")
    device = choose_device(device)
    attention_backend, dtype = (
        _on_cpu(attention_backend, dtype, draft) if device == "cpu" else (attention_backend, dtype)
    )
    checkpoint = _checkpoint(str(model), dtype, args, folder)
    port = _free_port(port)
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(checkpoint), "--port", str(port)]
    command += _CPU_FLAGS if device == "cpu" else ()
    backend_flag = CPU_BACKENDS.get(attention_backend, attention_backend) if device == "cpu" else attention_backend
    for flag, value in (("--attention-backend", backend_flag), ("--dtype", dtype)):
        command += [flag, value] if value else []
    if overrides := sglang_overrides(checkpoint):
        command += ["--json-model-override-args", json.dumps(overrides)]
    if draft:
        command += [*_MTP_FLAGS, "--speculative-draft-model-path", str(_folder("draft", draft))]
    variables = _environment(device, patches, folder) | dict(env_vars or {})
    return Launch((*command, *args), variables, Path(model).name, checkpoint, port, device, names)


def choose_device(device: str | None) -> str:
    """ "cpu" or "cuda", None for the GPU where there is one. Raises BadInput or, without a GPU, Unavailable."""
    if device not in (None, "cpu", "cuda"):
        raise bad("device", device, "cpu or cuda")
    if device == "cuda" and not env.has_gpu():
        raise Unavailable("device: got 'cuda', but this machine has no CUDA GPU")
    return device or ("cuda" if env.has_gpu() else "cpu")


def _on_cpu(attention_backend: str | None, dtype: str | None, draft: object) -> tuple[str, str]:
    backend, dtype = attention_backend or ("triton" if draft else "torch_native"), dtype or "float32"
    if backend not in CPU_BACKENDS:
        raise bad("attention_backend", backend, f"{' or '.join(CPU_BACKENDS)} on a CPU")
    if draft and backend == "torch_native":
        raise bad("attention_backend", backend, "triton with a draft model: torch_native cannot verify drafts")
    if dtype not in DTYPE_BYTES:
        raise bad("dtype", dtype, "one of " + ", ".join(DTYPE_BYTES))
    if backend == "triton" and dtype == "bfloat16":
        raise bad(
            "dtype", dtype, "float32 for the Triton backend on a CPU: Triton's interpreter computes bf16 wrong (3.7.1)"
        )
    return backend, dtype


def _checkpoint(model: str, dtype: str | None, args: list[str], folder: Path) -> Path:
    """The folder that `model` names: a tiny twin's, a large model's without weights (dummy loading), or a given one."""
    dummy = "dummy" in args or "--load-format=dummy" in args
    if model in TWINS:
        return ensure(model, dtype or "bfloat16")
    if model in NAMES and dummy:
        return write_checkpoint(spec(model), folder / "model", dtype=dtype or "bfloat16", weights=False)
    if model in NAMES:
        without = 'args=["--load-format", "dummy"] to do without'
        raise bad("model", model, f"a folder with its weights, or {without}; with weights: {', '.join(TWINS)}")
    path = _folder("model", model, also=f"one of {', '.join(NAMES)}, ")
    if not dummy and not any(path.glob("*.safetensors")):
        raise bad("model", str(path), "a folder with *.safetensors weights (this one has none)")
    return path


def _folder(name: str, given: str | Path, also: str = "") -> Path:
    path = Path(given).expanduser()
    if not path.is_dir():
        path = _in_hub_cache(str(given))
    if path is None:
        raise bad(name, str(given), f"{also}a checkpoint folder, or a model in the local Hugging Face cache")
    if not (path / "config.json").is_file():
        raise bad(name, str(path), "a checkpoint folder (this one has no config.json)")
    return path


def _in_hub_cache(model: str) -> Path | None:
    import huggingface_hub

    try:
        config = huggingface_hub.try_to_load_from_cache(model, "config.json")
    except huggingface_hub.errors.HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _free_port(port: int | None) -> int:
    """`port` if nothing listens there, or any free one for None. Raises BadInput."""
    if port is not None and not 0 < port < 65536:
        raise bad("port", port, "1 to 65535")
    error = None
    for candidate in [port] if port is not None else random.sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
                return candidate
            except OSError as failed:
                error = failed
    raise bad("port", port, f"a free port ({error.strerror})")


def _environment(device: str, patches: str, folder: Path) -> dict[str, str]:
    variables = {
        "HF_HUB_OFFLINE": "1",
        "SGLANG_PLUGINS": "g4lab",
        "G4LAB_PATCHES": patches,
        "G4LAB_COUNTERS_DIR": str(folder / "counters"),
        "PYTHONUNBUFFERED": "1",
    }
    if device == "cpu":
        path = os.pathsep.join(part for part in (str(STANDIN), os.environ.get("PYTHONPATH")) if part)
        variables |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": path,
        }
    return variables
