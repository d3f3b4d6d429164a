"""Build the wheel, install it alone into a clean virtual environment, and import it from there."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Runs outside of the checkout, with nothing but the standard library beside g4lab: what is light must stay importable.
CHECK = """
import importlib.metadata as m, sys
import g4lab
from g4lab.gemma4 import spec
from g4lab import patches
from g4lab.patches import sglang_plugin
from g4lab.runners import standin
assert spec("26b-a4b").num_experts == 128
assert "site-packages" in g4lab.__file__, g4lab.__file__
points = {(e.group, e.value) for e in m.distribution("g4lab").entry_points}
assert points == {("sglang.srt.plugins", "g4lab.patches.sglang_plugin:register"), ("console_scripts", "g4lab.cli:main")}
heavy = {"torch", "triton", "transformers", "sglang"} & set(sys.modules)
assert not heavy, heavy
print("imports g4lab", g4lab.__version__, "with", len(patches.REGISTRY), "patches")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("g4lab-*.whl")
        print(f"built {wheel.name}, {wheel.stat().st_size / 1024:.0f} KiB", flush=True)
        clean = Path(folder) / "venv"
        venv.create(clean, with_pip=True)
        python = str(clean / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
        subprocess.run([python, "-I", "-c", CHECK], check=True, cwd=folder)


if __name__ == "__main__":
    main()
