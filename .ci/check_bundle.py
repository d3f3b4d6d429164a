"""Make the real bundle, install it offline into a Python 3.12 that has what the node file says, and use it there.

    .venv/bin/python .ci/check_bundle.py [--python PATH] [--cache FOLDER]

Not part of `make test`: it downloads 0.5 GB of wheels and, for the node's own packages, another 5 GB, and keeps both in
the cache. On a CPU it shows that everything imports, that SGLang resolves the model and its arguments, and that kernels
run in the interpreter; no GPU kernel runs here. Needs Linux's `unshare -n`: a namespace without any network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from g4lab import env
from g4lab.bundle import make, read_node

NUMPY = "2.3.5"  # Triton 3.6's interpreter, which stands in for the GPU here, needs NumPy below 2.4
LAUNCH = (
    "--load-format dummy --dtype bfloat16 --attention-backend triton --sampling-backend pytorch --grammar-backend none"
    " --moe-runner-backend triton --mm-feature-transport cpu"
)
# What is run in the installed bundle -> what its output must have.
CHECKS = {
    "tail -n +2 /proc/net/route | wc -l": "0",
    "g4lab models": "26b-a4b",
    "python3 -c 'import sglang, transformers as t; print(sglang.__version__, t.__version__)'": "0.5.17 5.12.1",
    "python3 -c 'import flashinfer; flashinfer.bmm_fp8()' 2>&1 || true": "flashinfer is not in this bundle",
    "python3 -c 'from importlib.metadata import entry_points as e; print(*e(group=\"sglang.srt.plugins\"))'": "g4lab",
    f"python3 arguments.py ../model {LAUNCH}": "full 512 x 2, sliding 256 x 8, layers 25 + 5, triton triton pytorch",
    "TRITON_INTERPRET=1 python3 -m pytest -q tests/test_router.py tests/test_rms.py": " passed",
    "python3 -m pytest -q --collect-only -m gpu": "tests collected",
    "g4lab campaign --dry-run --only environment --budget 90s": "environment",
}
ARGUMENTS = """
import sys
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.server_args import ServerArgs
import argparse
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
a = parser.parse_args(["--model-path", *sys.argv[1:]])
m = ModelConfig(a.model_path)
print(f"full {m.head_dim} x {m.get_num_kv_heads(1)}, sliding {m.swa_head_dim} x {m.get_swa_num_kv_heads(1)},"
      f" layers {len(m.swa_attention_layer_ids)} + {len(m.full_attention_layer_ids)},",
      a.attention_backend, a.moe_runner_backend, a.sampling_backend)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.12")
    parser.add_argument("--cache", type=Path, default=env.cache_dir() / "bundle-check")
    given = parser.parse_args()
    with step("bundle"):
        content = make(given.cache / "bundle", say=print)
        sizes = {name: parcel["size"] / 2**20 for name, parcel in content["parcels"].items()}
        print(", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items()))
        assert all(size <= 55 for size in sizes.values())
    with step("what the node brings"):
        python = node_python(given.python, given.cache / "node")
    with tempfile.TemporaryDirectory() as work:
        dest = Path(work) / "dest"
        with step("install without a network"):
            run(f'PYTHON="{python}" sh "{given.cache}/bundle/install.sh" "{dest}"', "can work here")
        (dest / "g4lab" / "arguments.py").write_text(ARGUMENTS)
        for command, expected in CHECKS.items():
            with step(command):
                run(f'. "{dest}/env.sh"; cd "{dest}/g4lab"; {command}', expected)


class step:
    """Prints what runs and how long it took."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        print(f"=== {self.what}", flush=True)
        self.start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        print(f"=== {'failed' if error[0] else 'ok'}, {time.monotonic() - self.start:.0f} s", flush=True)


def node_python(base: str, folder: Path) -> Path:
    """The interpreter of a virtual environment with the node file's packages, made once."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
        there = read_node().packages | {"numpy": NUMPY}
        packages = [f"{name}{version and '=='}{version}" for name, version in there.items()]
        packages = [p.replace("torch==", "torch===", 1) if p.startswith("torch==") else p for p in packages]
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", "--no-cache-dir", *packages], check=True)
        (folder / ".ready").touch()
    return python


def run(command: str, expected: str) -> None:
    """Run `command` in a network namespace of its own, in a bare environment; exits where `expected` is not printed."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f"ip link set lo up 2>/dev/null; {command}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=keep,
    )  # fmt: skip
    print("\n".join(done.stdout.splitlines()[-25:]), flush=True)
    if done.returncode or expected not in done.stdout:
        sys.exit(f"exit code {done.returncode}; expected {expected!r}")


if __name__ == "__main__":
    main()
